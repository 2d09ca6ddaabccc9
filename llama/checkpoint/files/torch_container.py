"""The two containers that torch.save has had: a zip archive since 1.6, before it a row of pickles.

Each gives its one object and says at which byte every storage begins. What the object is for is not
known here.

Sources: torch/serialization.py (both containers), caffe2/serialize (names in the archive).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.files.byte_stream import ByteStream
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.torch_pickle import Pickled, Storage, read_pickle
from llama.checkpoint.files.unpickle import MAX_BYTES, unpickle
from llama.checkpoint.files.zip_directory import DamagedZipError, Member, read_directory
from llama.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


@dataclass(frozen=True)
class Content:
    """The object of one container, and the byte of the file at which each storage begins."""

    pickled: Pickled
    begins: Mapping[str, int]


def read_zip(file: DataFile, begin: int, end: int, *, plain: bool) -> Content:
    """The archive in bytes `begin` to `end`. Raises CheckpointError; `plain` as in read_pickle."""
    path = file.path
    try:
        members = read_directory(file, begin, end)
    except DamagedZipError:
        # The directory of a zip stands at its end, so this is what a cut-off file looks like.
        raise CheckpointError(
            f"{path} is truncated or damaged: {file.size:,} bytes are there, but they do not end "
            f"as an archive does; download it again"
        ) from None
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive but not one of torch.save: no data.pkl in it"
        )
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in members:
        raise CheckpointError(f"{path} is a TorchScript program; get the weights by themselves")
    order = members.get(root + "byteorder")
    if order is not None and file.read(order.offset, min(order.size, 9)) != b"little":
        raise CheckpointError(f"{path} was written on a machine of another byte order; convert it")
    listing = members[pickles[0]]
    if listing.size > MAX_BYTES:
        raise CheckpointError(
            f"{path} lists its tensors in {listing.size:,} bytes, more than the {MAX_BYTES:,} that "
            f"any checkpoint needs; it is damaged or made to do harm"
        )
    stream = ByteStream(file, listing.offset, listing.offset + listing.size)
    pickled = read_pickle(stream, path, plain=plain)
    begins = {
        storage.key: _begin(members.get(f"{root}data/{storage.key}"), storage, path)
        for storage in pickled.storages.values()
    }
    return Content(pickled, begins)


def _begin(member: Member | None, storage: Storage, path: Path) -> int:
    if member is None or member.size != storage.nbytes:
        held = "missing" if member is None else f"{member.size:,} bytes"
        raise CheckpointError(
            f"{path} is damaged: storage {storage.key[:80]!a} of {storage.nbytes:,} bytes is "
            f"{held}; download it again"
        )
    return member.offset


def read_legacy(file: DataFile, *, plain: bool) -> Content:
    """The pickles of a file from before torch 1.6: three of the container, the object, the order of
    its storages; then every storage, with its number of elements before it.

    Raises CheckpointError; `plain` as in read_pickle.
    """
    path = file.path
    stream = ByteStream(file, 0, MAX_BYTES)
    if unpickle(stream, path, allowed=_nothing) != _LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} ({file.size:,} bytes) is a bare pickle, not a file of torch.save; get the "
            f"weights from a publisher that you trust"
        )
    protocol = unpickle(stream, path, allowed=_nothing)
    system = unpickle(stream, path, allowed=_nothing)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError(f"{path} is damaged: it has no header of torch.save")
    if system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was written on a machine of another byte order; convert it")
    pickled = read_pickle(stream, path, plain=plain)
    keys = unpickle(stream, path, allowed=_nothing)
    return Content(pickled, _storages(file, stream.tell(), keys, pickled))


def _storages(file: DataFile, at: int, keys: object, pickled: Pickled) -> dict[str, int]:
    """Where the storages that follow each other from byte `at` begin, by key."""
    path = file.path
    given = keys if isinstance(keys, list) else []
    known = [pickled.storages.get(key) if isinstance(key, str) else None for key in given]
    storages = [storage for storage in known if storage is not None]
    if len(storages) < max(len(known), len(pickled.storages)):
        raise CheckpointError(f"{path} is damaged: its storages are not those of its tensors")
    needed = at + sum(_COUNT.size + storage.nbytes for storage in storages)
    if needed > file.size:
        raise CheckpointError(
            f"{path} is truncated: {file.size:,} of {needed:,} bytes are there; download it again"
        )
    begins: dict[str, int] = {}
    for storage in storages:
        (n_elements,) = _COUNT.unpack(file.read(at, _COUNT.size))
        if n_elements != storage.n_elements or storage.key in begins:
            raise CheckpointError(
                f"{path} is damaged: a storage of {storage.n_elements:,} elements has "
                f"{n_elements:,} at byte {at:,}; download it again"
            )
        begins[storage.key] = at + _COUNT.size
        at += _COUNT.size + storage.nbytes
    return begins


def _nothing(_: str) -> bool:
    return False
