"""`llama convert`: a checkpoint in another format, cut or dtype."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llama.cli.terminal import say
from llama.cli.typed import typed
from llama.errors import UsageError

if TYPE_CHECKING:
    from llama.checkpoint.convert import Progress

Target = Literal["meta", "hf", "megatron", "mistral"]
DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Convert:
    """Write the new folder; one line on stderr at the end."""

    source: Path
    destination: Path
    to: Target
    format: str | None
    shards: int | None
    tp: int
    pp: int
    dtype: DtypeName | None
    embedding_split: Literal["vocab", "hidden"] | None
    verify: bool
    overwrite: bool

    def run(self) -> None:
        import torch

        from llama.checkpoint import open_checkpoint
        from llama.checkpoint.convert import convert
        from llama.checkpoint.folder import checked_files
        from llama.checkpoint.manifest import verify
        from llama.checkpoint.writers.source import Options

        options = Options(
            shards=self.shards,
            tp=self.tp,
            pp=self.pp,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            embedding_split=self.embedding_split,
        )
        with closing(open_checkpoint(self.source, format=self.format)) as reader, _bar() as bar:
            if self.verify:
                verify(reader.folder, checked_files(reader))
            done = convert(
                reader,
                self.destination,
                to=self.to,
                options=options,
                overwrite=self.overwrite,
                progress=bar,
            )
        say(f"wrote {done.folder}: {len(done.files)} files, {done.nbytes:,} bytes")


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar on stderr; None when that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@typed
def convert(
    ckpt_dir: str,
    destination: str,
    *,
    to: Target,
    shards: int | None = None,
    tp: int = 1,
    pp: int = 1,
    dtype: DtypeName | None = None,
    embedding_split: Literal["vocab", "hidden"] | None = None,
    overwrite: bool = False,
    format: str | None = None,
    verify: bool = False,
) -> Convert:
    """Write a checkpoint in another format, number of files or dtype.

    The new folder appears when all of it is on the disk. Tokenizer files are copied along.

    Args:
        ckpt_dir: folder of the checkpoint to read
        destination: folder to write, which must not exist or be empty
        to: format to write: meta, hf, megatron or mistral
        shards: files to write, for meta and hf; by default 1, and for hf as many as 5 GB each make
        tp: tensor parallel ranks, for megatron
        pp: pipeline parallel ranks, for megatron
        dtype: float32, bfloat16 or float16; by default as stored
        embedding_split: how meta cuts the token embedding: vocab (Llama 3) or hidden (Llama 1, 2);
            by default vocab for vocabularies of more than 100,000
        overwrite: replace a destination that holds a checkpoint
        format: format of the checkpoint to read, where it is not recognised
        verify: first check the files to read against the checksums beside them
    """
    if not destination:
        raise UsageError("destination is empty; give the folder to write")
    for name, size in (("shards", shards), ("tp", tp), ("pp", pp)):
        if size is not None and size < 1:
            raise UsageError(f"--{name} must be at least 1, got {size}")
    return Convert(
        source=Path(ckpt_dir),
        destination=Path(destination),
        to=to,
        format=format,
        shards=shards,
        tp=tp,
        pp=pp,
        dtype=dtype,
        embedding_split=embedding_split,
        verify=verify,
        overwrite=overwrite,
    )
