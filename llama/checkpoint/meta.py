"""Meta's own format: params.json and any number of consolidated.NN.pth, as full named tensors.

Every shape in every file is checked against params.json before anybody takes memory for a weight.
Who wants which slice is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint.mapped import release
from llama.checkpoint.meta_files import OpenFiles, numbered_files, open_files
from llama.checkpoint.meta_layout import EMBEDDING, KEY, OUTPUT, MetaLayout, is_rope_table
from llama.checkpoint.params import Params, read_params
from llama.checkpoint.reader import TensorInfo
from llama.checkpoint.stored import StoredTensor
from llama.checkpoint.wording import dtype_name
from llama.config import ModelConfig
from llama.errors import CheckpointError

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROPE_REASON = "RoPE frequencies, computed from rope_theta instead"


class MetaReader:
    """The checkpoint in `ckpt_dir`, opened and checked; tensors stay in their files until read.

    Biases are known by their presence, since params.json has no key for them. Raises
    CheckpointError, and OutOfMemoryError when the address space has no room to map the files.
    """

    def __init__(self, ckpt_dir: Path) -> None:
        params = read_params(ckpt_dir / "params.json")
        files = open_files(ckpt_dir, params)
        names = list(next(iter(files.values())))
        layout = _layout(ckpt_dir, files, params)
        self.config: ModelConfig = layout.config
        self._stored = {
            name: _assembled(ckpt_dir, name, files, layout)
            for name in names
            if not is_rope_table(name)
        }
        _check_copies(ckpt_dir, files, layout)
        self.tensors: Mapping[str, TensorInfo] = {
            name: stored.info for name, stored in self._stored.items()
        }
        rope_tables = {name: _ROPE_REASON for name in names if is_rope_table(name)}
        self.ignored: Mapping[str, str] = {**params.ignored, **rope_tables}

    @staticmethod
    def recognises(ckpt_dir: Path) -> bool:
        """Whether the folder holds files of this format."""
        return bool(numbered_files(ckpt_dir))

    def read_into(self, out: Tensor, name: str, *, dim: int | None = None, start: int = 0) -> int:
        """See CheckpointReader; opening has made sure that the bytes are there."""
        stored = self._stored[name]
        bytes_read = stored.read_into(out, dim=dim, start=start)
        for part in stored.parts:
            release(part)
        return bytes_read

    def close(self) -> None:
        """Let go of the tensors, and with the last of them of the mapped files."""
        self._stored.clear()


def _layout(folder: Path, files: OpenFiles, params: Params) -> MetaLayout:
    """What params.json says, and what only tensors tell: vocabulary, biases, embedding cut."""
    (file, tensors), *_ = files.items()
    embedding = tensors.get(EMBEDDING)
    is_cut_by_column = (
        len(files) > 1 and embedding is not None and tuple(embedding.shape[1:]) != (params.dim,)
    )
    vocab_size = _vocab_size(tensors, len(files), is_cut_by_column=is_cut_by_column)
    if vocab_size is None:
        raise CheckpointError(
            f"{folder / file} has no matrix {OUTPUT} or {EMBEDDING}; it is incomplete"
        )
    if params.vocab_size not in (None, vocab_size):
        raise CheckpointError(
            f"{folder / file}: the tensors make a vocabulary of {vocab_size}, but params.json "
            f"gives vocab_size {params.vocab_size}; params.json belongs to another model"
        )
    config = params.model_config(
        vocab_size=vocab_size,
        attention_bias=any(name.endswith("attention.wq.bias") for name in tensors),
        mlp_bias=any(name.endswith("feed_forward.w1.bias") for name in tensors),
    )
    return MetaLayout(config, n_files=len(files), embedding_dim=1 if is_cut_by_column else 0)


def _vocab_size(
    tensors: Mapping[str, Tensor], n_files: int, *, is_cut_by_column: bool
) -> int | None:
    """Rows of the full head or embedding; the head is always cut by rows."""
    for name in (OUTPUT, EMBEDDING):
        tensor = tensors.get(name)
        if tensor is not None and tensor.dim() == 2:
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
    if dtype not in _FLOATING:
        raise CheckpointError(
            f"{folder / first}: {name} is stored as {dtype_name(dtype)}, but only "
            f"{', '.join(dtype_name(known) for known in _FLOATING)} are read; use the checkpoint "
            f"before quantisation"
        )
    for file, held in files.items():
        part = held[name]
        if tuple(part.shape) != layout.file_shape(slot):
            raise CheckpointError(
                f"{folder / file}: {name} has shape {tuple(part.shape)}, but "
                f"{layout.explain(slot)}; params.json or this file belongs to another model"
            )
        if part.dtype != dtype:
            raise CheckpointError(
                f"{folder}: {name} is {dtype_name(dtype)} in {first}, but {dtype_name(part.dtype)} "
                f"in {file}; they come from different checkpoints"
            )
    used = list(files)[:: layout.copies(slot)] if slot.dim is not None else [first]
    return StoredTensor.of([files[file][name] for file in used], used, dim=slot.dim)


def _check_copies(folder: Path, files: OpenFiles, layout: MetaLayout) -> None:
    """Where files should hold copies of a KV head, see that they do; one tensor tells for all."""
    slot, names = layout.slot(KEY), list(files)
    if slot is None or KEY not in files[names[0]]:
        return
    n_copies = layout.copies(slot)
    for number, file in enumerate(names):
        first = names[number - number % n_copies]
        if file != first and not torch.equal(files[file][KEY], files[first][KEY]):
            raise CheckpointError(
                f"{folder}: by n_kv_heads {layout.config.n_kv_heads} in params.json, {first} and "
                f"{file} hold the same KV head, but their {KEY} differ; params.json belongs to "
                f"another model"
            )
