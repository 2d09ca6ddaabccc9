"""The command line as a request, without starting anything and without torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.options import parse
from llama.config import TIME_LIMITS
from llama.errors import UsageError
from tests.helpers.programs import run


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLAMA_")]:
        monkeypatch.delenv(name)


def test_underscores_and_dashes_mean_the_same() -> None:
    limits = [name.removesuffix("_s") for name in TIME_LIMITS]
    values = {
        "nnodes": "2", "node_rank": "1", "master_addr": "a", "master_port": "9", "job_id": "j",
        "log_dir": "logs", "shutdown_timeout": "1", **dict.fromkeys(limits, "7"),
    }  # fmt: skip
    flags = ["no_prefix", "no_affinity", "no_fork", "dry_run"]
    underscores = [f"--{name}={value}" for name, value in values.items()]
    underscores += [f"--{name}" for name in flags] + ["x.py"]
    dashes = [word.replace("_", "-") for word in underscores]
    request, is_dry = parse(underscores)
    assert parse(dashes) == (request, is_dry) and is_dry
    assert (request.nodes.nnodes, request.nodes.node_rank) == (2, 1)
    assert (request.nodes.master_addr, request.nodes.master_port) == ("a", 9)
    assert (request.nodes.job_id, request.log_dir) == ("j", Path("logs"))
    assert not (request.has_prefix or request.has_affinity or request.has_fork)
    assert request.limits_s == dict.fromkeys(TIME_LIMITS, 7.0)
    assert request.shutdown_timeout_s == 1.0


def test_what_is_not_said_is_left_open() -> None:
    request, is_dry = parse(["x.py"])
    assert not is_dry and request.limits_s == {} and request.log_dir is None
    assert request.nodes.nnodes == 1 and request.has_prefix and request.has_affinity


def test_a_log_folder_and_a_job_of_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_LOG_DIR", "there")
    monkeypatch.setenv("LLAMA_JOB_ID", "77")
    request, _ = parse(["x.py"])
    assert request.log_dir == Path("there") and request.nodes.job_id == "77"


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["x.py", "--tp", "9", "-m"], ("x.py", "--tp", "9", "-m")),
        (["-m", "pkg.mod", "--x"], ("-m", "pkg.mod", "--x")),
        (["--tp", "2", "preflight", "--json", "f"], ("-m", "launch.preflight", "--json", "f")),
        (["-m", "preflight"], ("-m", "preflight")),
    ],
)
def test_programs(words: list[str], program: tuple[str, ...]) -> None:
    assert parse(words)[0].program == program


def test_a_file_of_that_name_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preflight").touch()
    assert parse(["preflight"])[0].program == ("preflight",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nproc", "four", "x.py"], "'four' is neither a number nor auto"),
        (["--frobnicate", "x.py"], "unrecognized arguments: --frobnicate"),
        (["--step_timeout", "soon", "x.py"], "invalid float value: 'soon'"),
        (["--nnodes", "2", "x.py"], "--nnodes 2 needs --master_addr"),
        (["--nproc", "0", "x.py"], "--nproc must be at least 1, got 0"),
        ([], "required: program"),
    ],
)
def test_wrong_options(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words)


def test_help_needs_no_torch() -> None:
    code = "import launch.__main__ as m, sys; print(m.main(['--nproc', 'x', 'y']), *sys.modules)"
    done = run(["-c", code])
    status, *modules = done.stdout.split()
    assert status == "64" and "launch.options" in modules and "torch" not in modules, done.stderr
    assert "neither a number nor auto" in done.stderr


def test_a_size_of_the_environment_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAMA_TP_SIZE", "two")
    with pytest.raises(UsageError, match="LLAMA_TP_SIZE must be a whole number, got 'two'"):
        parse(["script.py"])
