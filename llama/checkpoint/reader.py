"""What a checkpoint container must answer. One file beside this one per container; FORMATS finds
it.

A reader shows full, named tensors and hides how many files hold them. It knows nothing of ranks or
layers: whoever loads asks for slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint.canonical import HEAD, expected_shapes
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.wording import dtype_name, shortened
from llama.config import ModelConfig
from llama.errors import CheckpointError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class CheckpointReader:
    """Full tensors of one checkpoint by canonical name ("layers.0.attention.wq.weight").

    `config` is the architecture as the checkpoint states it. `ignored` names what is there and
    deliberately not part of a model, each with the reason; `notes` say what is odd but harmless,
    `warnings` what could matter. `family` is the model_type of Hugging Face ("llama", "mistral",
    "gpt2") where the checkpoint tells it.
    """

    format: str
    folder: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    ignored: Mapping[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    family: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first weight matrix, float32 without any; norms may be wider."""
        dtypes = (tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) == 2)
        return next(dtypes, torch.float32)

    def read_into(self, out: Tensor, name: str, *, dim: int | None = None, start: int = 0) -> int:
        """Fill `out` with tensor `name`, or with out.shape[dim] items of its dim `dim` from
        `start`.

        Converts to out's dtype. Returns the bytes taken from the files. Raises CheckpointError that
        names the file when the bytes are not there.
        """
        tensor = self.tensors[name]
        if dim is not None:
            tensor = tensor.narrow(dim, start, out.shape[dim])
        return tensor.read_into(out)

    def close(self) -> None:
        """Let go of the files."""
        for tensor in self.tensors.values():
            tensor.close()


@dataclass(frozen=True)
class Format:
    """One container: whether a folder is of it, told from file names alone, and its reader.

    `open` raises CheckpointError for whatever is wrong with the folder.
    """

    recognises: Callable[[Path], bool]
    open: Callable[[Path], CheckpointReader]


def make_reader(
    format: str,
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    *,
    ignored: Mapping[str, str],
    notes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    family: str | None = None,
) -> CheckpointReader:
    """The reader, once names, shapes and dtypes are those of `config`. Raises CheckpointError."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in tensors]
    if missing:
        hint = ", or its head is tied and its configuration does not say so"
        raise CheckpointError(
            f"{folder}: the checkpoint lacks {len(missing)} of the {len(expected)} tensors of its "
            f"model: {shortened(missing)}; it is incomplete, or its configuration is of another "
            f"one{hint if missing == [HEAD] else ''}"
        )
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise CheckpointError(
            f"{folder}: the checkpoint has {len(extra)} tensors that its model would not use: "
            f"{shortened(extra)}; its weights or its configuration are of another model"
        )
    for name, shape in expected.items():
        _check(name, tensors[name], shape, folder)
    in_order = {name: tensors[name] for name in expected}
    return CheckpointReader(
        format, folder, config, in_order, dict(ignored), notes, warnings, family
    )


def _check(name: str, tensor: StoredTensor, shape: tuple[int, ...], folder: Path) -> None:
    where = f"{tensor.parts[0].path or folder}: {name}"
    if tensor.shape != shape:
        raise CheckpointError(
            f"{where} has shape {tensor.shape}, but the configuration asks for {shape}; one of the "
            f"two belongs to another model"
        )
    dtypes = {part.dtype for part in tensor.parts}
    if len(dtypes) > 1:
        kinds = " and ".join(sorted(map(dtype_name, dtypes)))
        raise CheckpointError(
            f"{where} is stored in parts of {kinds}; they come from different checkpoints"
        )
    if tensor.dtype not in FLOATING:
        raise CheckpointError(
            f"{where} is stored as {dtype_name(tensor.dtype)}, but only "
            f"{', '.join(map(dtype_name, FLOATING))} are read; use the checkpoint before "
            f"quantisation"
        )
