"""postmortem.json: what ended the job and where every rank was then, for who looks afterwards."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from llama.parallel.liveness.beat import Beat
from llama.parallel.liveness.failure import Failure
from llama.version import VERSION

FILE_NAME = "postmortem.json"
_CLOCK_S = 1.0
"""Clocks of files are coarser, and those of another host's disk are another's."""


class Postmortem:
    """The file in `folder`; `beats` gives the newest beats that this rank knows of."""

    def __init__(self, folder: Path, beats: Callable[[], Sequence[Beat]]) -> None:
        self._folder = folder
        self._beats = beats
        self._job_began = time.time() - _CLOCK_S

    def write(self, failure: Failure) -> None:
        """Unless another rank of this host has. A disk that is full or read-only is no error."""
        path = self._folder / FILE_NAME
        content = {
            "first_failure": asdict(failure),
            "beats": [asdict(beat) for beat in self._beats()],
            "versions": {
                "llama": VERSION,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self._folder) as beside:
            if path.exists() and path.stat().st_mtime < self._job_began:
                path.unlink()  # an earlier job's
            complete = Path(beside, FILE_NAME)
            complete.write_text(json.dumps(content, indent=2) + "\n")
            os.link(complete, path)  # fails where there is one
