"""Ranks that meet, add one number up, say "met 2", and wait until FOLDER/go exists."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.faults.programs.rank import observed, say


def main(folder: Path) -> None:
    with observed(folder):
        import torch

        from llama.parallel.context import initialize

        context = initialize()
        total = context.world.all_reduce(torch.ones(1))
        say(f"met {int(total)}")
        while not (folder / "go").exists():
            time.sleep(0.05)
        context.close()
        say("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
