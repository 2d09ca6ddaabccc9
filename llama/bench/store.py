"""Where the models of a run are: random weights and their GGUF files, made when they are needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llama.bench.contestant import Contestant
from llama.bench.shapes import Shape
from llama.bench.weights import write_weights
from llama.errors import OutputError


@dataclass(frozen=True)
class ModelStore:
    """Everything is below `home`. `is_kept`: for another run."""

    home: Path
    is_kept: bool = False

    @classmethod
    @contextmanager
    def at(cls, folder: Path | None) -> Iterator[ModelStore]:
        """In `folder`, which stays, or in a temporary one that goes. Raises OutputError."""
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make {folder}: {error.strerror or error}") from None
            yield cls(folder.absolute(), is_kept=True)
            return
        with TemporaryDirectory(prefix="llama-bench-models-") as name:
            yield cls(Path(name))

    def model_for(self, shape: Shape, contestant: Contestant) -> Path:
        """What `contestant` loads. Raises OutputError."""
        folder = write_weights(shape, self.home)
        if contestant.engine != "llama.cpp":
            return folder
        path = self._gguf(shape.name, contestant)
        if not path.is_file():
            from llama.bench.peers.gguf_file import write_gguf

            unfinished = path.with_suffix(".part")
            try:
                write_gguf(shape, folder, unfinished, dtype=contestant.dtype)
                unfinished.rename(path)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    def forget_all_but(self, needed: Iterable[tuple[str, Contestant]]) -> None:
        """Unless kept, give back the room of models that nobody in `needed` (shape, contestant)
        will load.
        """
        if self.is_kept:
            return
        wanted = list(needed)
        kept = {self._gguf(shape, one) for shape, one in wanted if one.engine == "llama.cpp"}
        shapes = {shape for shape, _ in wanted}
        for path in self.home.iterdir():
            if path.is_file() and path not in kept:
                with suppress(FileNotFoundError):
                    path.unlink()
            elif path.is_dir() and path.name.rpartition("-")[0] not in shapes:
                shutil.rmtree(path)

    def _gguf(self, shape: str, contestant: Contestant) -> Path:
        return self.home / f"{shape}.{contestant.dtype}.gguf"
