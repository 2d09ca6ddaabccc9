"""`decode`, from a disk that takes its time over every tensor. Says "tensor 3" at its third."""

from __future__ import annotations

import time
from itertools import count

from tests.faults.programs import decode
from tests.faults.programs.rank import observed, say

TENSOR_S = 0.3


def slow_down() -> None:
    from llama.parallel.liveness.whereabouts import Whereabouts

    begin, numbers = Whereabouts.at_file, count(1)

    def at_file(self: Whereabouts, file: str) -> None:
        begin(self, file)
        say(f"tensor {next(numbers)}")
        time.sleep(TENSOR_S)

    Whereabouts.at_file = at_file  # type: ignore[method-assign]


def main() -> None:
    options = decode.parse()
    with observed(options.folder):
        slow_down()
        decode.decode(decode.build(options), options)


if __name__ == "__main__":
    main()
