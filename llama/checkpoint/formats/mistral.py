"""Mistral's own format: params.json and one consolidated file, .pth or .safetensors.

Names and RoPE are those of Meta's files, and the model is never cut. Windows shorter than a
sequence are described in the configuration; who can run them is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llama.checkpoint.files import safetensors_file, torch_file
from llama.checkpoint.files.names import plain_file
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats import meta
from llama.checkpoint.formats.params import read_params
from llama.checkpoint.reader import CheckpointReader, Format, make_reader
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError

SAFETENSORS = "consolidated.safetensors"
PTH = "consolidated.00.pth"
PARAMS = "params.json"

# What stands in a tensor's name -> what the model is.
_FOREIGN = {
    "vision_encoder.": "has a vision encoder; use a text-only model",
    "vision_language_adapter.": "has a vision encoder; use a text-only model",
    "patch_merger.": "has a vision encoder; use a text-only model",
    "pre_mm_projector_norm.": "has a vision encoder; use a text-only model",
    "feed_forward.experts.": "is a mixture of experts; use a dense model",
    "feed_forward.gate.": "is a mixture of experts; use a dense model",
    "qscale": "is quantised; use the checkpoint in bfloat16",
    "lora_": "has low-rank adapters; merge them into the weights or use the base checkpoint",
}


def recognises(folder: Path) -> bool:
    """Whether the .safetensors is there, which is only Mistral's, or the .pth and not as Meta's."""
    if not (folder / PARAMS).is_file():
        return False
    is_pth = (folder / PTH).is_file() and not meta.recognises(folder)
    return is_pth or (folder / SAFETENSORS).is_file()


def open_mistral(folder: Path) -> CheckpointReader:
    """The checkpoint in `folder`, opened and checked. Raises CheckpointError."""
    params = read_params(folder / PARAMS, dialect="mistral")
    path, notes = _weights_file(folder)
    load = torch_file.load_tensors if path.name == PTH else safetensors_file.load_tensors
    stored = load(path)
    _refuse_foreign(stored, path)
    vocab_size = params.vocab_size
    if vocab_size is None:
        raise CheckpointError(f"{params.path}: vocab_size must be given in Mistral's format")
    tensors = {name: StoredTensor.of([tensor]) for name, tensor in stored.items()}
    return make_reader(
        "mistral",
        folder,
        params.model_config(vocab_size=vocab_size),
        tensors,
        ignored=params.ignored,
        notes=notes,
        family="mistral",
    )


MISTRAL = Format(recognises, open_mistral)


def _weights_file(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The file to read, and what is odd about the choice."""
    found = [name for name in (SAFETENSORS, PTH) if (folder / name).is_file()]
    if not found:
        raise CheckpointError(
            f"no checkpoint files found in {folder}: Mistral's format needs {SAFETENSORS} or {PTH}"
        )
    others = sorted(path.name for path in folder.glob("consolidated.*.pth") if path.name != PTH)
    if others and found[0] == PTH:
        raise CheckpointError(
            f"{folder} holds {shortened(others)} besides {PTH}, but Mistral's format has one file; "
            f"use format meta for a checkpoint in several"
        )
    notes = (f"{SAFETENSORS} is read, {PTH} is not",) if len(found) == 2 else ()
    return plain_file(folder, found[0]), notes


def _refuse_foreign(names: Iterable[str], path: Path) -> None:
    for name in names:
        for part, what in _FOREIGN.items():
            if part in name:
                raise CheckpointError(f"{path} holds {name[:120]}, so the model {what}")
