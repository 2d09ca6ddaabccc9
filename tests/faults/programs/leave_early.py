"""`decode`, but rank 1 does not make the call that all ranks must make: it ends well, and at once.

The classic mistake is a program that generates under `if rank == 0`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.faults.programs import decode
from tests.faults.programs.rank import say

if TYPE_CHECKING:
    from llama.llm import LLM


def leave(llm: LLM) -> None:
    if llm.context.rank == 1:
        say("leaving")
        sys.exit(0)


if __name__ == "__main__":
    decode.main(leave)
