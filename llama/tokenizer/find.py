"""Where the tokenizer of a checkpoint lies. It knows names of files, not what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from os.path import abspath
from pathlib import Path

from llama.errors import CheckpointError

_IN_FOLDER = (
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "tokenizer.json",
    "vocab.json",
    "gpt2-vocab.json",
    "original/tokenizer.model",
)
_MEGATRON_ITERATION = re.compile(r"iter_\d{7}|release")


def find_tokenizer(ckpt_dir: str | PathLike[str]) -> Path:
    """The tokenizer file of the checkpoint in `ckpt_dir`.

    First in the folder itself, then beside it: Meta's Llama 1 and 2 have one tokenizer.model for
    all sizes, Megatron-LM one for all iterations. Where several lie together tokenizer.model or
    tekken.json wins, the file that a tokenizer.json was converted from; of Mistral's
    tokenizer.model.vN the newest does; a vocab.json counts only with its merges.txt.

    Raises CheckpointError that lists what was looked for.
    """
    folder = Path(abspath(ckpt_dir))  # "." by itself has no parent to look into
    beside = _IN_FOLDER if _MEGATRON_ITERATION.fullmatch(folder.name) else _IN_FOLDER[:1]
    for place, patterns in ((folder, _IN_FOLDER), (folder.parent, beside)):
        for path in (found for pattern in patterns for found in _matches(place, pattern)):
            return path
    raise CheckpointError(
        f"no tokenizer found (looked for {folder / _IN_FOLDER[0]}, {', '.join(_IN_FOLDER[1:])} "
        f"and for {folder.parent / ', '.join(beside)}); give tokenizer_path"
    )


def merges_beside(vocabulary: Path) -> Path:
    """Where the merges of a vocab.json are: merges.txt, gpt2-merges.txt for gpt2-vocab.json."""
    return vocabulary.with_name(vocabulary.name.removesuffix("vocab.json") + "merges.txt")


def _matches(folder: Path, pattern: str) -> Iterator[Path]:
    newest_first = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))[::-1]
    for path in newest_first:
        needs_merges = path.name.endswith("vocab.json")
        if path.is_file() and (not needs_merges or merges_beside(path).is_file()):
            yield path
