"""Meta's own format: params.json and any number of consolidated.NN.pth, as full named tensors.

Every shape in every file is checked against params.json before anybody takes memory for a weight.
Who wants which slice is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.meta_files import OpenFiles, numbered_files, open_files
from llama.checkpoint.formats.meta_layout import EMBEDDING, KEY, OUTPUT, MetaLayout, is_rope_table
from llama.checkpoint.formats.params import Params, read_params
from llama.checkpoint.formats.params_keys import WINDOW_KEYS
from llama.checkpoint.reader import CheckpointReader, Format, make_reader
from llama.checkpoint.wording import dtype_name
from llama.errors import CheckpointError
from llama.files.json_file import read_object

_ROPE_REASON = "RoPE frequencies, computed from rope_theta instead"


def open_meta(folder: Path) -> CheckpointReader:
    """The checkpoint in `folder`, opened and checked; tensors stay in their files until read.

    Biases are known by their presence, since params.json has no key for them. Raises
    CheckpointError.
    """
    params = read_params(folder / "params.json")
    files = open_files(folder, params)
    names = list(next(iter(files.values())))
    layout = _layout(folder, files, params)
    stored = {
        name: _assembled(folder, name, files, layout) for name in names if not is_rope_table(name)
    }
    _check_copies(folder, files, layout)
    rope_tables = {name: _ROPE_REASON for name in names if is_rope_table(name)}
    ignored = {**params.ignored, **rope_tables}
    return make_reader("meta", folder, layout.config, stored, ignored=ignored)


def recognises(folder: Path) -> bool:
    """Whether `folder` holds numbered files, other than the single one of a Mistral.

    That lies beside a .safetensors, or params.json gives a window. Without either the two formats
    agree, but for what they leave out of params.json.
    """
    present = numbered_files(folder)
    if len(present) != 1:
        return bool(present)
    is_double = (folder / "consolidated.safetensors").is_file()
    return not is_double and not _has_window(folder / "params.json")


def _has_window(path: Path) -> bool:
    try:
        return any(key in read_object(path) for key in WINDOW_KEYS)
    except CheckpointError:
        return False


META = Format(recognises, open_meta)


def _layout(folder: Path, files: OpenFiles, params: Params) -> MetaLayout:
    """What params.json says, and what only tensors tell: vocabulary, biases, embedding cut."""
    (file, tensors), *_ = files.items()
    embedding = tensors.get(EMBEDDING)
    is_cut_by_column = (
        len(files) > 1 and embedding is not None and embedding.shape[1:] != (params.dim,)
    )
    vocab_size = _vocab_size(tensors, len(files), is_cut_by_column=is_cut_by_column)
    if vocab_size is None:
        raise CheckpointError(
            f"{folder / file} has no matrix {OUTPUT} or {EMBEDDING}; it is incomplete"
        )
    config = params.model_config(vocab_size=vocab_size, names=tensors)
    return MetaLayout(config, n_files=len(files), embedding_dim=1 if is_cut_by_column else 0)


def _vocab_size(
    tensors: Mapping[str, FileTensor], n_files: int, *, is_cut_by_column: bool
) -> int | None:
    """Rows of the full head or embedding; the head is always cut by rows."""
    for name in (OUTPUT, EMBEDDING):
        tensor = tensors.get(name)
        if tensor is not None and len(tensor.shape) == 2:
            is_whole = name == EMBEDDING and is_cut_by_column
            return tensor.shape[0] * (1 if is_whole else n_files)
    return None


def _assembled(folder: Path, name: str, files: OpenFiles, layout: MetaLayout) -> StoredTensor:
    """Tensor `name` over all files, with the shape and dtype of every part checked."""
    slot = layout.slot(name)
    (first, tensors), *_ = files.items()
    if slot is None:
        raise CheckpointError(
            f"{folder / first} holds {name}, which a Llama of {layout.config.n_layers} layers "
            f"(n_layers in params.json) does not have; one of the two belongs to another model"
        )
    dtype = tensors[name].dtype
    for file, held in files.items():
        part = held[name]
        if part.shape != layout.file_shape(slot):
            raise CheckpointError(
                f"{folder / file}: {name} has shape {part.shape}, but "
                f"{layout.explain(slot)}; params.json or this file belongs to another model"
            )
        if part.dtype != dtype:
            raise CheckpointError(
                f"{folder}: {name} is {dtype_name(dtype)} in {first}, but {dtype_name(part.dtype)} "
                f"in {file}; they come from different checkpoints"
            )
    used = list(files)[:: layout.copies(slot)] if slot.dim is not None else [first]
    return StoredTensor.of([files[file][name] for file in used], dim=slot.dim)


def _check_copies(folder: Path, files: OpenFiles, layout: MetaLayout) -> None:
    """Where files should hold copies of a KV head, see that they do; one row of it tells."""
    slot, names = layout.slot(KEY), list(files)
    if slot is None or KEY not in files[names[0]]:
        return
    n_copies = layout.copies(slot)
    for number, file in enumerate(names):
        first = names[number - number % n_copies]
        if file != first and not torch.equal(_first_row(files[file]), _first_row(files[first])):
            raise CheckpointError(
                f"{folder}: by n_kv_heads {layout.config.n_kv_heads} in params.json, {first} and "
                f"{file} hold the same KV head, but their {KEY} differ; params.json belongs to "
                f"another model"
            )


def _first_row(tensors: Mapping[str, FileTensor]) -> Tensor:
    row = tensors[KEY].view(lambda rows: rows[0])
    out = torch.empty(row.shape, dtype=row.dtype)
    row.read_into(out)
    return out
