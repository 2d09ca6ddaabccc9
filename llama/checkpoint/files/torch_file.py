"""One file of torch.save, opened without trusting it: tensors that stay in the file.

torch.load is not used. Its weights_only mode still calls functions that a file names, and its
messages advise to switch the protection off; here nothing is called at all. And it maps files, or
reads them whole, where a rank wants to read its own bytes by position. What the tensors are for is
not known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.torch_container import Content, read_legacy, read_zip
from llama.checkpoint.files.torch_pickle import DenseTensor
from llama.errors import CheckpointError
from llama.files.signature import accident, is_legacy_torch, is_tar, is_zip, read_head


def load_tensors(path: Path) -> dict[str, FileTensor]:
    """Tensors of `path` by name. Raises CheckpointError unless it is a flat dict of dense tensors.

    Tensors that share a storage share their bytes in the file.
    """
    file = DataFile(path)
    content = _content(file, plain=True)
    held = content.pickled.value
    if not isinstance(held, dict):
        raise CheckpointError(f"{path} holds {_kind(held)}; a checkpoint is a flat dict of tensors")
    tensors: dict[str, FileTensor] = {}
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, DenseTensor):
            raise CheckpointError(
                f"{path} holds {_kind(value)} at {ascii(name)[:80]}; a checkpoint is a flat dict "
                f"of tensors"
            )
        if not name.isprintable():
            raise CheckpointError(f"{path} has a tensor of an unreadable name, {ascii(name)[:80]}")
        tensors[name] = _located(file, content, value)
    return tensors


def load_object(path: Path) -> object:
    """What `path` holds: dicts, lists, tuples and scalars, with FileTensor where tensors are.

    A namespace of arguments is a dict. Of other things that training programs leave only an
    `Opaque` (see `torch_pickle`) is made. Raises CheckpointError for everything else.
    """
    file = DataFile(path)
    content = _content(file, plain=False)
    return _all_located(file, content, content.pickled.value, {})


def load_tensor_at(file: DataFile, offset: int, length: int) -> FileTensor:
    """The one tensor that torch.save wrote into `length` bytes of `file` from byte `offset`."""
    if not 0 <= offset <= offset + length <= file.size:
        raise CheckpointError(
            f"{file.path} is truncated or damaged: a tensor should be in bytes {offset:,} to "
            f"{offset + length:,}, but {file.size:,} bytes are there"
        )
    content = read_zip(file, offset, offset + length, plain=True)
    if not isinstance(content.pickled.value, DenseTensor):
        kind = _kind(content.pickled.value)
        raise CheckpointError(f"{file.path} holds {kind} at byte {offset:,} instead of a tensor")
    return _located(file, content, content.pickled.value)


def _content(file: DataFile, *, plain: bool) -> Content:
    path, size = file.path, file.size
    head = read_head(path)
    cause = accident(head)
    if cause is not None:
        raise CheckpointError(f"{path} ({size:,} bytes) is {cause}")
    if is_zip(head):
        return read_zip(file, 0, size, plain=plain)
    if is_legacy_torch(head):
        return read_legacy(file, plain=plain)
    if is_tar(head):
        raise CheckpointError(
            f"{path} ({size:,} bytes) is of the format before torch 0.1.10; save it again with a "
            f"newer torch"
        )
    raise CheckpointError(
        f"{path} ({size:,} bytes) is not a file of torch.save: it begins with {head[:8]!r}"
    )


def _located(file: DataFile, content: Content, tensor: DenseTensor) -> FileTensor:
    return FileTensor.of(
        file,
        content.begins[tensor.storage.key],
        dtype=tensor.storage.dtype,
        shape=tensor.shape,
        stride=tensor.stride,
        storage_offset=tensor.offset,
    )


def _all_located(file: DataFile, content: Content, value: Any, done: dict[int, Any]) -> Any:
    """`value` with the tensors in it replaced; read_pickle has bounded its depth.

    `done` has by id what was replaced before, so what is shared is read once and stays shared.
    """
    if not isinstance(value, DenseTensor | dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, DenseTensor):
            found: Any = _located(file, content, value)
        elif isinstance(value, dict):
            found = {key: _all_located(file, content, held, done) for key, held in value.items()}
        else:
            found = type(value)(_all_located(file, content, held, done) for held in value)
        done[id(value)] = found
    return done[id(value)]


def _kind(value: object) -> str:
    return "a tensor" if isinstance(value, DenseTensor) else f"a {type(value).__name__}"
