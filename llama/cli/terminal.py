"""What the user is told. stdout is for what the model says."""

import sys


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
