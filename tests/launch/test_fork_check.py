"""When ranks are not copies of the launcher, each reason by itself, and a launch of either kind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.programs import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")

ASK = """
import json, os, sys, threading
sys.path[:0] = {path!r}
import torch
{before}
from launch.fork_check import why_not
environ = {{"OMP_NUM_THREADS": str(torch.get_num_threads()), **{environ!r}}}
print(why_not({program!r}, environ))
"""


def reason(
    *program: str,
    cwd: Path,
    before: str = "",
    environ: dict[str, str] | None = None,
    options: tuple[str, ...] = (),
    env: dict[str, str | None] | None = None,
) -> str:
    """What a launcher in `cwd` has against forking ranks of `program`."""
    source = ASK.format(path=[], before=before, environ=environ or {}, program=program)
    done = run([*options, "-c", source], cwd=cwd, env=env or {})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_what_a_copy_would_do_otherwise_is_not_forked(tmp_path: Path) -> None:
    """One process: the reasons that need no other way of starting it."""
    (tmp_path / "program.py").write_text("")
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for name in ("program.py", "torch.py", "llama.py"):
        (shadow / name).write_text("")
    (shadow / "json").mkdir()  # without __init__.py it does not come before a package
    cases = [
        (["program.py"], {}),
        (["-c", "pass"], {}),
        (["-m", "torch"], {}),
        (["-m", "launch.fork_check"], {}),
        (["shadow/program.py"], {}),
        (["program.pyc"], {}),
        (["program.py"], {"OMP_PROC_BIND": "true"}),
        (["program.py"], {"OMP_NUM_THREADS": "77"}),
    ]
    before = f"""
from launch import fork_check
for program, more in {cases!r}:
    environ = {{"OMP_NUM_THREADS": str(torch.get_num_threads()), **more}}
    print(fork_check.why_not(program, environ))
os.environ["LLAMA_FORK"] = "0"
print(fork_check.why_not(["program.py"], environ))
del os.environ["LLAMA_FORK"]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(fork_check.why_not(["program.py"], environ))
sys.stdout.flush()
os._exit(0)
"""
    source = ASK.format(path=[], before=before, environ={}, program=[])
    done = run(["-c", source], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script, code, package, loaded, shadowed, compiled, bound, threads, told, busy = (
        done.stdout.splitlines()
    )
    assert (script, code, package) == ("", "", "")
    assert loaded == "launch.fork_check has been imported here"
    assert shadowed == f"{shadow} has another module torch"
    assert compiled == "the program is compiled"
    assert bound == "OMP_PROC_BIND places threads"
    assert "torch has been imported for" in threads and "not 77" in threads
    assert told == "LLAMA_FORK is 0"
    assert busy == "threads or a debugger run here"


@pytest.mark.nightly
def test_an_interpreter_with_more_options_or_a_start_of_its_own(tmp_path: Path) -> None:
    assert reason("-c", "", cwd=tmp_path, options=("-O",)) == ""
    assert reason("-c", "", cwd=tmp_path, options=("-X", "dev")).endswith("started with -X")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text("")
    root = str(Path(__file__).parents[2])
    env: dict[str, str | None] = {"PYTHONPATH": f"{tmp_path / 'hooks'}:{root}"}
    assert "sitecustomize" in reason("-c", "", cwd=tmp_path, env=env)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_launch_forks_unless_told_not_to(tmp_path: Path) -> None:
    """And the copies have their share of the threads, and draw numbers of their own."""
    (tmp_path / "program.py").write_text(
        "import os, sys\nhad = 'torch' in sys.modules\n"
        "import json, numpy, torch\n"
        "facts = [had, torch.get_num_threads(), os.environ['OMP_NUM_THREADS'],\n"
        "         torch.initial_seed(), numpy.random.random()]\n"
        "open(os.environ['RANK'], 'w').write(json.dumps(facts))\n"
    )
    draws, seeds = set(), set()
    for options, is_forked in ([], True), (["--no_fork"], False):
        done = run(["-m", "launch", "--nproc", "2", *options, "program.py"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for rank in "01":
            had, threads, given, seed, draw = json.loads((tmp_path / rank).read_text())
            assert (had, str(threads)) == (is_forked, given)
            draws.add(draw)
            seeds.add(seed)
    assert (len(draws), len(seeds)) == (4, 4)
