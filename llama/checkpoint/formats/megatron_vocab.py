"""How many rows of Megatron's embedding are tokens: it is padded so that every rank has as many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.canonical import EMBEDDING, POSITIONS
from llama.checkpoint.formats.megatron_args import ARGUMENTS_FILE, Arguments
from llama.checkpoint.formats.megatron_stages import MegatronModel
from llama.errors import CheckpointError
from llama.files.json_file import read_object

_GPT2_VOCAB = 50257
_VOCAB_FILES = ("vocab.json", "gpt2-vocab.json")
_MAX_VOCAB_FILE_BYTES = 32 * 10**6
_PAD_UNIT = 128
"""Rows of the embedding are a multiple of this times tp, unless Megatron was told otherwise."""


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the embedding that are tokens, and what to tell of how that is known."""

    size: int
    note: str | None


def vocabulary(model: MegatronModel, arguments: Arguments, folders: list[Path]) -> Vocabulary:
    """How many rows of the padded embedding are tokens.

    Told by the arguments, by a vocabulary file in `folders`, or by the size that only GPT-2's pads
    to; else padding stays. Raises CheckpointError when there are fewer rows than tokens.
    """
    rows = sum(shard.shape[0] for shard in model.top[EMBEDDING])
    size, source = _true_size(arguments, folders)
    if size is None and _is_released_gpt2(model, arguments, rows):
        size, source = _GPT2_VOCAB, "GPT-2's vocabulary"
    if size is None:
        note = f"the vocabulary of {rows} may end in padding; {ARGUMENTS_FILE} can tell vocab_size"
        return Vocabulary(rows, note)
    if size > rows:
        raise CheckpointError(
            f"{model.top[EMBEDDING][0].path}: the embedding has {rows} rows, but {source} gives "
            f"{size} tokens; one of the two belongs to another model"
        )
    note = f"{rows - size} rows of padding in the vocabulary, {size} tokens by {source}"
    return Vocabulary(size, note if size < rows else None)


def _true_size(arguments: Arguments, folders: list[Path]) -> tuple[int | None, str]:
    for name in ("orig_vocab_size", "vocab_size"):
        size = arguments.integer(name)
        if size is not None:
            return size, arguments.source
    for folder in folders:
        for name in _VOCAB_FILES:
            path = folder / name
            if path.is_file():
                return len(read_object(path, max_bytes=_MAX_VOCAB_FILE_BYTES)), str(path)
    return None, ""


def _is_released_gpt2(model: MegatronModel, arguments: Arguments, rows: int) -> bool:
    """Whether a GPT-2 without arguments of its own has the rows that its vocabulary pads to."""
    unit = _PAD_UNIT * model.tp_size
    is_silent = arguments.integer("padded_vocab_size") is None
    return is_silent and POSITIONS in model.top and rows == -(-_GPT2_VOCAB // unit) * unit
