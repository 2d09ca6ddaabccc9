"""Which files make a Megatron-LM checkpoint: the iteration, and one file per rank of tp × pp.

What is in the files is not known here, so neither is how many ranks there should be; `RankFiles`
checks itself against that number later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.files.names import plain_file
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError
from llama.files.signature import regular_file

TRACKER = "latest_checkpointed_iteration.txt"
MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
_MAX_TRACKER_BYTES = 64
_MAX_ITERATION = 10**12
_RELEASE = "release"
_ITERATION = re.compile(r"iter_\d{7,13}")
_RANK = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3,4}))?(?:_(\d{3,4}))?")

Rank = tuple[int, int]
"""Tensor rank, pipeline rank."""


@dataclass(frozen=True)
class RankFiles:
    """The file of every rank that was found in `folder`, the one of the iteration."""

    folder: Path
    files: Mapping[Rank, Path]

    @property
    def tp_size(self) -> int:
        return 1 + max(tp for tp, _ in self.files)

    @property
    def pp_size(self) -> int:
        return 1 + max(pp for _, pp in self.files)

    def check(self, tp_size: int, pp_size: int) -> None:
        """Raises CheckpointError unless exactly the ranks of `tp_size` × `pp_size` are there."""
        needed = [(tp, pp) for pp in range(pp_size) for tp in range(tp_size)]
        missing = [rank for rank in needed if rank not in self.files]
        if missing:
            names = shortened(rank_folder(*rank, pp_size=pp_size) for rank in missing)
            raise CheckpointError(
                f"{names} missing in {self.folder}: {len(needed)} rank folders needed (tp "
                f"{tp_size} x pp {pp_size}), {len(self.files)} found; download what is missing"
            )
        extra = [path for rank, path in self.files.items() if rank not in needed]
        if extra:
            names = shortened(path.parent.name for path in extra)
            raise CheckpointError(
                f"{self.folder} holds {len(self.files)} rank folders, but {len(needed)} make the "
                f"model (tp {tp_size} x pp {pp_size}); move {names} away"
            )


def rank_folder(tp_rank: int, pp_rank: int, *, pp_size: int) -> str:
    """What Megatron calls the folder of one rank."""
    name = f"mp_rank_{tp_rank:02d}"
    return name if pp_size == 1 else f"{name}_{pp_rank:03d}"


def iteration_folder(iteration: int | None) -> str:
    """What Megatron calls the folder of an iteration; None is the release."""
    return _RELEASE if iteration is None else f"iter_{iteration:07d}"


def is_megatron(folder: Path) -> bool:
    """Whether the names in `folder` are Megatron's: tracker, iterations, ranks, or one bare .pt."""
    names = {path.name for path in folder.iterdir()}
    if TRACKER in names or any(_RANK.fullmatch(name) for name in names):
        return True
    if _is_distributed(names):
        return "metadata.json" in names
    if any(_is_iteration(name) and _looks_saved(folder / name) for name in names):
        return True
    if _model_file(folder) is not None:
        return True
    # any .pt may be a bare one, but hardly among folders of other things
    return _bare_file(folder) is not None and not any(path.is_dir() for path in folder.iterdir())


def rank_files(folder: Path) -> RankFiles:
    """The ranks' files of the checkpoint in `folder`, which may be the iteration's own.

    Raises CheckpointError when there are none, when they are of another layout of Megatron's, or
    when a link on the way to one leads out of the folder that it lies in.
    """
    iteration = _chosen(folder)
    names = {path.name for path in iteration.iterdir()}
    if _is_distributed(names):
        raise CheckpointError(
            f"{iteration} is a distributed checkpoint of Megatron core (torch_dist: *.distcp), "
            f"which is not read here; write it in the other format with Megatron's "
            f"--ckpt-convert-format torch --ckpt-convert-save DIR"
        )
    ranks = _ranks(iteration)
    if ranks:
        return RankFiles(iteration, ranks)
    bare = _bare_file(iteration)
    if bare is None:
        raise CheckpointError(
            f"no checkpoint files found in {iteration}: Megatron's format needs "
            f"mp_rank_00/{MODEL_FILES[0]}; it holds {shortened(sorted(names)) or 'nothing'}"
        )
    return RankFiles(iteration, {(0, 0): plain_file(iteration, bare.name)})


def _chosen(folder: Path) -> Path:
    """The folder of the iteration: by the tracker, or the only one, or `folder` itself."""
    if (folder / TRACKER).is_file():
        return _tracked(folder)
    found = sorted(path.name for path in folder.iterdir() if _is_iteration(path.name))
    if len(found) > 1 and not _ranks(folder):
        raise CheckpointError(
            f"{folder} holds {shortened(found)} but no {TRACKER}; give one of these folders"
        )
    return plain_file(folder, found[0]) if found and not _ranks(folder) else folder


def _tracked(folder: Path) -> Path:
    path = folder / TRACKER
    size = regular_file(path)
    if size > _MAX_TRACKER_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; it should hold one number or 'release'")
    try:
        text = path.read_bytes().decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{path} cannot be read as text") from None
    is_number = text.isdigit() and int(text) <= _MAX_ITERATION
    if not is_number and text != _RELEASE:
        raise CheckpointError(
            f"{path} says {text!r}; it should hold the number of an iteration or 'release'"
        )
    iteration = plain_file(folder, iteration_folder(int(text) if is_number else None))
    if not iteration.is_dir():
        held = shortened(sorted(p.name for p in folder.iterdir() if _is_iteration(p.name)))
        raise CheckpointError(
            f"{path} says {text}, but there is no folder {iteration.name}; "
            f"found: {held or 'none'}; correct the file or give the folder of an iteration"
        )
    return iteration


def _ranks(folder: Path) -> dict[Rank, Path]:
    """Rank -> file; folders that hold an optimizer only are passed over."""
    found: dict[Rank, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        match = _RANK.fullmatch(path.name)
        file = _model_file(path) if match else None
        if match is None or file is None:
            continue
        if match[3] is not None:
            raise CheckpointError(
                f"{file} is of an expert-parallel checkpoint (tp, pp, expert), so the model is a "
                f"mixture of experts; use a dense model"
            )
        rank = (int(match[1]), int(match[2] or 0))
        if rank in found:
            raise CheckpointError(
                f"{found[rank].parent} and {path} are the same rank; move one of them away"
            )
        found[rank] = plain_file(plain_file(folder, path.name), file.name)
    return found


def _model_file(folder: Path) -> Path | None:
    return next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)


def _bare_file(folder: Path) -> Path | None:
    """The 345M release unpacked by hand: the file without its folders, whatever its name."""
    files = sorted(folder.glob("*.pt"))
    return _model_file(folder) or (files[0] if len(files) == 1 and files[0].is_file() else None)


def _looks_saved(iteration: Path) -> bool:
    if not iteration.is_dir():
        return False
    names = {path.name for path in iteration.iterdir()}
    is_ranked = any(_RANK.fullmatch(name) for name in names)
    return is_ranked or _is_distributed(names) or any(name in names for name in MODEL_FILES)


def _is_iteration(name: str) -> bool:
    return name == _RELEASE or _ITERATION.fullmatch(name) is not None


def _is_distributed(names: set[str]) -> bool:
    return any(name.endswith(".distcp") for name in names) or ".metadata" in names
