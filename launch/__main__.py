"""`python -m launch [options] script.py args...`, also installed as `llama-launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.stops import exiting_on_interrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Launch what `argv` says (default: the command line of this process); the exit status."""
    with exiting_on_interrupt():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    # imported here, where Ctrl-C means an end without a traceback
    from launch import console

    console.open_streams()
    from launch.hardware import probe
    from launch.job import plan, show
    from launch.options import parse
    from launch.outcome import PIPE_CLOSED
    from launch.spawn import launch
    from llama.errors import LlamaError

    try:
        request, dry_run = parse(argv)
        if not dry_run:
            return launch(request)
        machine = probe()
        job = plan(request, machine)
        show(job, machine)
        print(job.as_torchrun, flush=True)
    except BrokenPipeError:
        console.discard(sys.stdout)
        return PIPE_CLOSED
    except LlamaError as error:
        console.say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
