"""`python -m llama.native`: compile now what would else be compiled by the first run."""

from __future__ import annotations

import sys
from typing import get_args

from llama.native import LibraryName, library, why_not


def main() -> None:
    for name in get_args(LibraryName):
        sys.stdout.write(f"{name}: {'compiled' if library(name) else why_not(name)}\n")


if __name__ == "__main__":
    main()
