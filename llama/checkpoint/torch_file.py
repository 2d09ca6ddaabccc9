"""One file of torch.save, opened without trusting it: a flat dict of memory-mapped tensors.

Nothing in the file is run and none of its tensor bytes are read here. It does not know what the
tensors are for. Messages of torch itself never get out: some of them advise to switch the
protection off.
"""

from __future__ import annotations

import re
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from llama.checkpoint.file_mappings import FileMappings
from llama.checkpoint.pickle_scan import foreign_globals
from llama.checkpoint.signature import accident, is_legacy_torch, is_zip, read_head, regular_file
from llama.errors import CheckpointError, OutOfMemoryError

# Older ones can be made to run code by a file even with weights_only=True (CVE-2025-32434 and
# later).
MIN_TORCH = (2, 10)
MAX_PICKLE_BYTES = 64 * 2**20
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_REFUSED = (
    "{path} {what} and is refused, because loading it could run code; get the weights from a "
    "publisher that you trust"
)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of `path` by name, on the CPU, backed by the file until they are copied.

    Raises CheckpointError when the file is not what torch.save (1.6 or newer) writes for a flat
    dict of dense tensors, OutOfMemoryError when the address space has no room for the file.
    """
    _check_torch()
    size = regular_file(path)
    _check_is_torch_zip(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of here ends in an error below
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise _explained(error, path, size) from None
    _check_is_flat(loaded, path)
    tensors: dict[str, Tensor] = loaded
    if sys.platform == "linux":
        _check_is_mapped(tensors, path)
    return tensors


def _check_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < MIN_TORCH:
        floor = ".".join(map(str, MIN_TORCH))
        raise CheckpointError(
            f"torch {torch.__version__} does not read .pth files safely; install torch >= {floor}"
        )


def _check_is_torch_zip(path: Path, size: int) -> None:
    head = read_head(path)
    cause = accident(head)
    if cause is not None:
        raise CheckpointError(f"{path} ({size:,} bytes) is {cause}")
    if is_legacy_torch(head):
        raise CheckpointError(
            f"{path} ({size:,} bytes) is a bare pickle or of the format before torch 1.6, which "
            f"can hide code and cannot be mapped; get it in the zip format of torch.save"
        )
    if not is_zip(head):
        raise CheckpointError(
            f"{path} ({size:,} bytes) is not a file of torch.save: it begins with {head[:8]!r}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, size, archive)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, struct.error):
        # The directory of a zip stands at its end, so this is what a cut-off file looks like.
        raise CheckpointError(
            f"{path} is truncated or damaged: {size:,} bytes are there but not the end of the "
            f"archive; download it again"
        ) from None


def _check_members(path: Path, size: int, archive: zipfile.ZipFile) -> None:
    """Refuse what torch.save never writes, and what could not be used as it lies in the file."""
    # torch finds members whatever their case, so DATA.PKL may be what it reads
    members = {member.filename.lower(): member for member in archive.infolist()}
    if not any(name.endswith("data.pkl") for name in members):
        raise CheckpointError(
            f"{path} is a zip archive but not one of torch.save: no data.pkl in it"
        )
    if len(members) < len(archive.infolist()):
        raise CheckpointError(f"{path} is damaged: its archive lists a member twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise CheckpointError(
            f"{path} was packed again with compression and cannot be mapped; get the original file"
        )
    declared = sum(member.file_size for member in members.values())
    if declared > size:
        raise CheckpointError(
            f"{path} is damaged: it declares {declared:,} bytes of content in a file of {size:,}"
        )
    for name, member in members.items():
        if name.endswith("data.pkl"):
            _check_pickle(path, archive, member)
    order = next((name for name in members if name.endswith("/byteorder")), None)
    if order is not None and archive.read(members[order]) != sys.byteorder.encode():
        raise CheckpointError(f"{path} was written on a machine of another byte order; convert it")


def _check_pickle(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} lists its tensors in {member.file_size:,} bytes, more than the "
            f"{MAX_PICKLE_BYTES:,} that any checkpoint needs; it is damaged or made to do harm"
        )
    pickled = archive.read(member)
    try:
        foreign = next(foreign_globals(pickled), None)
    except ValueError:
        raise CheckpointError(
            f"{path} is damaged: its list of tensors is no pickle; download it again"
        ) from None
    if foreign is not None:
        what = f"holds more than plain tensors ({foreign.replace(' ', '.')})"
        raise CheckpointError(_REFUSED.format(path=path, what=what))


def _explained(error: Exception, path: Path, size: int) -> Exception:
    text = str(error)
    if "Cannot allocate memory" in text or isinstance(error, MemoryError):
        return OutOfMemoryError(
            f"no room to map {path} ({size:,} bytes); raise the address space limit (ulimit -v)"
        )
    if isinstance(error, UnpicklingError):
        found = _GLOBAL.search(text)
        what = "is no mere list of tensors"
        if found:
            what = f"holds more than plain tensors ({found[1]})"
        return CheckpointError(_REFUSED.format(path=path, what=what))
    return CheckpointError(
        f"{path} ({size:,} bytes) is damaged and cannot be read ({type(error).__name__}); "
        f"download it again"
    )


def _check_is_flat(loaded: object, path: Path) -> None:
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}; a checkpoint is a flat dict of tensors"
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} at {str(name)[:80]!r}; a checkpoint is a "
                f"flat dict of tensors"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is not a plain dense tensor")


def _check_is_mapped(tensors: dict[str, Tensor], path: Path) -> None:
    """What passed for a tensor of the file must lie in it: its pages are dropped after use."""
    mappings = FileMappings()
    for name, tensor in tensors.items():
        if not mappings.back(tensor):
            raise CheckpointError(
                f"{path}: {name} does not lie in the file; it is damaged or made to do harm"
            )
