"""From files to parameters: readers (one per container), the pull loader, and its report.

FORMATS are asked in order whether a folder is theirs; each is a `llama.checkpoint.reader.Format`.
"""

from __future__ import annotations

import os
from pathlib import Path

from llama.checkpoint.reader import CheckpointReader, Format
from llama.errors import CheckpointError, UsageError
from llama.registry import resolve

FORMATS = {
    "meta": "llama.checkpoint.formats.meta:META",
    "mistral": "llama.checkpoint.formats.mistral:MISTRAL",
    "hf": "llama.checkpoint.formats.hf:HF",
    "megatron": "llama.checkpoint.formats.megatron:MEGATRON",
    "dcp": "llama.checkpoint.formats.dcp:DCP",
}


def open_checkpoint(ckpt_dir: str | Path, *, format: str | None = None) -> CheckpointReader:
    """The checkpoint in the folder `ckpt_dir`, in `format` or in the first one that recognises it.

    Raises CheckpointError when there is none or it is broken, UsageError for an empty ckpt_dir or
    an unknown format.
    """
    if not isinstance(ckpt_dir, str | os.PathLike):
        raise UsageError(f"ckpt_dir is {ckpt_dir!r}; give the folder that holds the checkpoint")
    if not os.fspath(ckpt_dir):  # Path("") would be the current folder
        raise UsageError("ckpt_dir is empty; give the folder that holds the checkpoint")
    folder = Path(ckpt_dir)
    names = _names(folder)
    for known in FORMATS if format is None else (format,):
        found: Format = resolve(FORMATS, known, kind="checkpoint format")
        if format is not None or found.recognises(folder):
            return found.open(folder)
    held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise CheckpointError(
        f"no checkpoint files found in {ckpt_dir}: "
        + (f"it holds {held}, of no known format" if names else "it is empty")
        + f"; give the folder that holds a checkpoint (known formats: {', '.join(FORMATS)})"
    )


def _names(folder: Path) -> list[str]:
    """What lies in `folder`. Raises CheckpointError when it is no readable folder."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is a file; give the folder that holds it") from None
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist; check ckpt_dir"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot list checkpoint folder {folder}: {error}") from error
