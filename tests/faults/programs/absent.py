"""`decode`, but rank 1 never gets as far as looking for the others."""

from __future__ import annotations

import time

from tests.faults.programs import decode
from tests.faults.programs.rank import observed


def main() -> None:
    options = decode.parse()
    with observed(options.folder) as rank:
        if rank == 1:
            time.sleep(3600)
        decode.decode(decode.build(options), options)


if __name__ == "__main__":
    main()
