"""Forked ranks beside those with an interpreter of their own: a program finds no difference."""

from __future__ import annotations

import json
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.programs import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")

FACTS = """
import json, os, signal, sys, threading
def kind(value):
    return value if isinstance(value, str) else str(type(value))
streams = [sys.stdin, sys.stdout, sys.stderr]
signals = {int(s): signal.getsignal(s) for s in signal.valid_signals()}
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "executable": sys.executable,
    "main": {k: kind(v) for k, v in sorted(globals().items()) if k.startswith("__")},
    "is main": vars(sys.modules["__main__"]) is globals(),
    "environ": {k: v for k, v in os.environ.items() if k != "LABEL"},
    "session": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "cores": sorted(os.sched_getaffinity(0)), "tasks": len(os.listdir("/proc/self/task")),
    "files": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
    "passed": os.read(int(os.environ["PASSED"]), 1).decode(),
    "inheritable": os.get_inheritable(int(os.environ["PASSED"])),
    "signals": {s: h.__name__ if callable(h) else str(h) for s, h in signals.items()},
    "blocked": [str(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "streams": [[s.name, s.mode, s.encoding, s.errors, s.isatty(), s.write_through, s.seekable(),
                 s.line_buffering, kind(s.buffer), s.fileno()] for s in streams],
    "standard": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__,
                 sys.stderr is sys.__stderr__, sys.excepthook is sys.__excepthook__],
    "threads": [t.name for t in threading.enumerate()],
    "stdin": sys.stdin.read(),
}))
"""
ENDS = {
    "well": "print('x', end='')",
    "status": "import sys; sys.exit(3)",
    "large": "import sys; sys.exit(256 + 7)",
    "true": "import sys; sys.exit(True)",
    "words": "import sys; print('a'); sys.exit('some words')",
    "list": "raise SystemExit([1, 2])",
    "none": "raise SystemExit",
    "error": "def f():\n    raise ValueError('no')\nf()",
    "cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError(2) from e",
    "syntax": "x = = 1",
    "import": "import nothing_of_that_name",
    "interrupt": "import atexit; atexit.register(print, 'bye'); raise KeyboardInterrupt",
    "ctrl-c": "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass",
    "term": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "abort": "import os; os.abort()",
    "at once": "import os; print('lost', flush=False); os._exit(5)",
    "hook": "import sys; sys.excepthook = lambda *e: print('hook', e[0]); raise ValueError",
    "bad hook": "import sys\ndef hook(*e): 1 / 0\nsys.excepthook = hook\nraise ValueError(1)",
    "hook exits": "import sys; sys.excepthook = lambda *e: sys.exit(9); raise ValueError",
    "atexit": "import atexit\n@atexit.register\ndef _(): print('bye')\nraise SystemExit(4)",
    "thread": "import threading as t, time\n"
    "def work(): time.sleep(0.2); print('done')\nt.Thread(target=work).start()\nprint('first')",
    "daemon": "import threading as t, time\n"
    "t.Thread(target=time.sleep, args=[60], daemon=True).start()",
    "file": "import os; file = open(os.environ['LABEL'], 'w'); file.write('unflushed')",
    "deleted": "class A:\n    def __del__(self): print('gone')\na = A()",
    "child": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1)'])",
    "forked": "import os, sys\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint(bool(pid))",
    "spawned": "import multiprocessing as m\nif __name__ == '__main__':\n"
    "    p = m.get_context('spawn').Process(target=print, args=['x']); p.start(); p.join()",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "class": "import inspect\nclass A: pass\nprint(A.__module__, inspect.getfile(A) == __file__)",
    "closed": "import sys, os; sys.stdout.close(); os.write(2, b'x')",
}
"""Programs by how they end."""
CODES = {"error", "status", "well", "words"}
"""Those that are run with -c too."""


def compare(programs: dict[str, list[str]], folder: Path) -> dict[str, Any]:
    """What the executed rank of each program left behind, once the forked one has left the same."""
    env = {"ONLY_THE_LAUNCHER": "1"}
    done = run(["-m", "tests.helpers.forked", json.dumps(programs)], cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    results = {}
    for name in programs:
        execed, forked = (
            json.loads((folder / f"{name}.{label}.json").read_text()) for label in ("exec", "fork")
        )
        assert forked == execed
        results[name] = execed
    return results


def test_a_program_finds_what_a_new_interpreter_would_have(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("program.py", "__main__.py"):
        (tmp_path / "deep" / name).write_text(FACTS)
    (tmp_path / "link.py").symlink_to(tmp_path / "deep" / "program.py")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("__main__.py", FACTS)
    programs = {
        "script": ["deep/program.py", "a", "-b"],
        "dotted": ["./deep/../deep/program.py"],
        "absolute": [str(tmp_path / "deep" / "program.py")],
        "link": ["link.py"],
        "folder": ["deep", "-c"],
        "zip": ["whole.zip"],
        "module": ["-m", "deep.program", "-m", "x"],
        "package": ["-m", "deep"],
        "code": ["-c", FACTS, "a", "-c"],
    }
    for name, found in compare(programs, tmp_path).items():
        assert found["status"] == 0 and json.loads(found["stdout"])["is main"], name


def test_programs_end_as_in_a_new_interpreter(tmp_path: Path) -> None:
    for name, source in ENDS.items():
        (tmp_path / f"{name}.py").write_text(source)
    programs = {name: [f"{name}.py"] for name in ENDS}
    programs |= {f"{name} -c": ["-c", ENDS[name]] for name in CODES}
    programs |= {f"{name} -m": ["-m", name] for name in CODES}
    found = compare(programs, tmp_path)
    statuses = {name: result["status"] for name, result in found.items()}
    assert (statuses["status"], statuses["large"], statuses["words"]) == (3, 7, 1)
    assert statuses["ctrl-c"] == -signal.SIGINT and statuses["abort"] == -signal.SIGABRT
    assert "in f" in found["error"]["stderr"] and "gone" in found["deleted"]["stdout"]
    assert (tmp_path / "fork").read_text() == "unflushed"
