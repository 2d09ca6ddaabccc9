"""Folders of torch.distributed.checkpoint (DCP): `.metadata` and files of blocks, as full tensors.

The names are Meta's or Hugging Face's, and params.json or config.json must lie beside, since DCP
has no place for an architecture. How the blocks were spread over ranks does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llama.checkpoint.canonical import EMBEDDING
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.names import plain_file
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.files.torch_file import load_tensor_at
from llama.checkpoint.formats.dcp_metadata import METADATA, Chunk, DcpMetadata, read_metadata
from llama.checkpoint.formats.hf_config import read_config
from llama.checkpoint.formats.hf_names import canonical_tensors
from llama.checkpoint.formats.meta_layout import is_rope_table
from llama.checkpoint.formats.params import read_params
from llama.checkpoint.reader import CheckpointReader, Format, make_reader
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError

_META = re.compile(r"(.*?)tok_embeddings\.weight")
_HF = re.compile(r"(.*?)(?:model\.)?embed_tokens\.weight|(.*?)(?:transformer\.)?wte\.weight")
_NOT_A_TENSOR = "no tensor, but an object of the program that trained the model"


def open_dcp(folder: Path) -> CheckpointReader:
    """The checkpoint in `folder`, opened and checked. Raises CheckpointError."""
    metadata = read_metadata(folder)
    prefix, is_meta = _prefix(folder, metadata)
    inside = {name for name in metadata.shapes if name.startswith(prefix)}
    ignored = dict.fromkeys(metadata.others, _NOT_A_TENSOR)
    for name in metadata.shapes.keys() - inside:
        ignored[name] = f"not among the weights, whose names begin with {prefix!r}"
    files = {chunk.file for name in inside for chunk in metadata.chunks[name]}
    opened = {name: DataFile(plain_file(folder, name)) for name in sorted(files)}
    stored = {
        name.removeprefix(prefix): _assembled(name, metadata, opened)
        for name in metadata.shapes
        if name in inside
    }
    reader = _with_params if is_meta else _with_config
    return reader(folder, stored, ignored)


def recognises(folder: Path) -> bool:
    """Whether there is a `.metadata` with the files that it describes."""
    return (folder / METADATA).is_file() and any(folder.glob("*.distcp"))


DCP = Format(recognises, open_dcp)


def _prefix(folder: Path, metadata: DcpMetadata) -> tuple[str, bool]:
    """What the names of all weights begin with, and whether they are Meta's."""
    found = [(name, _META.fullmatch(name), _HF.fullmatch(name)) for name in metadata.shapes]
    hits = [(meta or hf, meta is not None) for _, meta, hf in found if meta or hf]
    if len(hits) != 1:
        held = shortened(metadata.shapes) or "no tensors"
        raise CheckpointError(
            f"{folder / METADATA} describes {len(hits)} token embeddings instead of one, named "
            f"as Meta or Hugging Face do; it holds {held}"
        )
    ((match, is_meta),) = hits
    assert match is not None
    return next((group for group in match.groups() if group is not None), ""), is_meta


def _assembled(name: str, metadata: DcpMetadata, files: Mapping[str, DataFile]) -> StoredTensor:
    """Tensor `name` of its blocks. Raises CheckpointError unless they fill it along one dim."""
    shape, chunks = metadata.shapes[name], metadata.chunks[name]
    filled = [chunk for chunk in chunks if 0 not in chunk.sizes] or list(chunks[:1])
    cut = {dim for chunk in filled for dim in range(len(shape)) if chunk.sizes[dim] != shape[dim]}
    where = f"{files[filled[0].file].path.parent / METADATA}: {name}" if filled else name
    if len(cut) > 1:
        dims = " and ".join(map(str, sorted(cut)))
        raise CheckpointError(
            f"{where} is cut into a grid, along dims {dims}; save it again with one dim sharded "
            f"(FSDP or tensor parallel, not both)"
        )
    dim = min(cut, default=0)
    in_order = sorted(filled, key=lambda chunk: chunk.offsets)
    _check_filled(where, shape, in_order, dim)
    parts = [_part(name, chunk, files[chunk.file]) for chunk in in_order]
    return StoredTensor.of(parts, dim=dim if shape else None)


def _check_filled(where: str, shape: tuple[int, ...], in_order: list[Chunk], dim: int) -> None:
    """The blocks must follow each other without gap or overlap, from one end to the other."""
    end = 0
    for chunk in in_order:
        begin = tuple(end if d == dim else 0 for d in range(len(shape)))
        if chunk.offsets != begin:
            raise CheckpointError(f"{where}: its blocks leave gaps or overlap at {chunk.offsets}")
        end += chunk.sizes[dim] if shape else 0
    if not in_order or (shape and end != shape[dim]):
        raise CheckpointError(f"{where} has shape {shape}, but its blocks end at {end}")


def _part(name: str, chunk: Chunk, file: DataFile) -> FileTensor:
    part = load_tensor_at(file, chunk.at, chunk.length)
    if part.shape != chunk.sizes:
        raise CheckpointError(
            f"{file.path}: the block of {name} at byte {chunk.at:,} has shape {part.shape}, but "
            f"{METADATA} says {chunk.sizes}; they are of different checkpoints"
        )
    return part


def _with_params(
    folder: Path, stored: Mapping[str, StoredTensor], ignored: Mapping[str, str]
) -> CheckpointReader:
    path = _beside(folder, "params.json")
    params = read_params(path)
    vocab_size = stored[EMBEDDING].shape[0] if stored[EMBEDDING].shape else 0
    config = params.model_config(vocab_size=vocab_size, names=stored)
    tables = [name for name in stored if is_rope_table(name) or name == "freqs_cis"]
    reasons = dict.fromkeys(tables, "RoPE frequencies, computed from rope_theta instead")
    weights = {name: tensor for name, tensor in stored.items() if name not in reasons}
    ignored = {**params.ignored, **ignored, **reasons}
    return make_reader("dcp", folder, config, weights, ignored=ignored)


def _with_config(
    folder: Path, stored: Mapping[str, StoredTensor], ignored: Mapping[str, str]
) -> CheckpointReader:
    config = read_config(_beside(folder, "config.json"))
    named = canonical_tensors(stored, config.model, source=str(folder / METADATA))
    return make_reader(
        "dcp",
        folder,
        named.config,
        named.tensors,
        ignored={**ignored, **named.ignored},
        warnings=config.warnings,
        notes=(*config.notes, *named.notes),
    )


def _beside(folder: Path, name: str) -> Path:
    path = plain_file(folder, name)
    if not path.exists():
        raise CheckpointError(
            f"{folder} lacks {name}: torch.distributed.checkpoint keeps no architecture; put the "
            f"{name} of the model beside {METADATA}"
        )
    return path
