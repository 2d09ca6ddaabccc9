"""Collectives that do not fit together, on rank 1's side. FOLDER (order | shape | dtype).

Every rank says "result ..." after each collective that returned.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.programs.rank import observed, say

GOOD = 3
"""Collectives that fit, before the one that does not."""


def main(folder: Path, fault: str) -> None:
    with observed(folder):
        import torch

        from llama.parallel.context import initialize

        context = initialize()
        for number in range(GOOD):
            total = context.tp.all_reduce(torch.full((16,), 1.0))
            say(f"result {number} {total.tolist()[0]}")
        say("fitting")
        is_odd = context.rank == 1
        n_elements = 8 if is_odd and fault == "shape" else 16
        dtype = torch.int32 if is_odd and fault == "dtype" else torch.float32
        tensor = torch.full((n_elements,), 1, dtype=dtype)
        if is_odd and fault == "order":
            context.tp.broadcast(tensor, src=0)
        else:
            context.tp.all_reduce(tensor)
        say(f"result {GOOD} {tensor.tolist()[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
