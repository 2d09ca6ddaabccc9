"""One checkpoint written in another format, cut or dtype, a chunk of a tensor at a time.

Which file holds what is planned by the writers; what the new folder goes through until it is
finished is known to `output_folder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from llama.checkpoint.files.names import plain_file
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers import WRITERS
from llama.checkpoint.writers.output_file import CopiedFile, OutputFile, Plan
from llama.checkpoint.writers.output_folder import output_folder
from llama.checkpoint.writers.replaceable import is_replaceable
from llama.checkpoint.writers.source import Options
from llama.errors import UsageError
from llama.files.signature import regular_file
from llama.registry import resolve

Progress = Callable[[int, int], object]
"""Called with the bytes written so far and in all."""

TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt",
    "gpt2-vocab.json", "gpt2-merges.txt", "tekken.json",
)  # fmt: skip
"""What is copied as it is."""


@dataclass(frozen=True)
class Conversion:
    """What was written: the folder, the names of its files in it, and their bytes together."""

    folder: Path
    files: tuple[str, ...]
    nbytes: int


def convert(
    reader: CheckpointReader,
    dst: str | os.PathLike[str],
    *,
    to: str,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the checkpoint of `reader` to the new folder `dst` in the format `to`.

    Memory stays below the largest tensor and a few chunks. `dst` appears when everything is on the
    disk; it must not exist or be empty, or hold a checkpoint and `overwrite` be given. Raises
    UsageError for wrong arguments, CheckpointError for a model that the format cannot hold and
    for what cannot be read, OutputError for what cannot be written and when there is no room.
    """
    options = options or Options()
    _check_options(to, options)
    place = Path(os.path.realpath(dst))
    _check_apart(Path(os.path.realpath(reader.folder)), place)
    plan: Plan = resolve(WRITERS, to, kind="format to write")(reader, options)
    planned = {file.name for file in plan.others}
    copies = [file for file in _tokenizer(reader.folder) if file.name not in planned]
    plan = Plan(plan.weights, [*copies, *plan.others])
    replaceable = is_replaceable if overwrite else None
    with output_folder(place, need_bytes=plan.nbytes, is_replaceable=replaceable) as folder:
        _write(plan, folder, progress or (lambda _done, _total: None))
    return Conversion(
        place, tuple(file.name for file in (*plan.weights, *plan.others)), plan.nbytes
    )


def _check_options(to: str, options: Options) -> None:
    """Raises UsageError for an option that the format `to` has no use for."""
    for name, is_given, formats in (
        ("shards", options.shards not in (None, 1), ("meta", "hf")),
        ("tp", options.tp != 1, ("megatron",)),
        ("pp", options.pp != 1, ("megatron",)),
        ("embedding_split", options.embedding_split is not None, ("meta",)),
    ):
        if is_given and to in WRITERS and to not in formats:
            raise UsageError(
                f"--{name} does not apply to --to {to}, only to {' and '.join(formats)}; leave it "
                f"out" + (", or use --tp and --pp" if to == "megatron" else "")
            )


def _check_apart(source: Path, place: Path) -> None:
    if source == place or source.is_relative_to(place):
        raise UsageError(f"{place} is or holds the source {source}; give another folder to write")


def _tokenizer(folder: Path) -> list[OutputFile]:
    """Files to copy. Raises CheckpointError for a link that leads out of the folder."""
    found = [plain_file(folder, name) for name in TOKENIZER_FILES]
    return [CopiedFile(path.name, path, regular_file(path)) for path in found if path.exists()]


def _write(plan: Plan, folder: Path, progress: Progress) -> None:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, plan.nbytes)

    # Files take turns: what each has of one tensor lies in the same pages of the source.
    _write_together(plan.weights, folder, advance)
    for file in plan.others:
        _write_together([file], folder, advance)


def _write_together(
    files: Sequence[OutputFile], folder: Path, advance: Callable[[int], object]
) -> None:
    with ExitStack() as stack:
        running = []
        for file in files:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            writing = file.write(path, advance)
            stack.enter_context(closing(writing))
            running.append(writing)
        for _ in zip_longest(*running):
            pass
