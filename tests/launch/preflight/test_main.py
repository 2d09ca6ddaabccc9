"""Preflight on real ranks: what it measures, and how it ends when something is wrong."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.preflight import __main__ as preflight
from launch.preflight import doors, probes
from launch.preflight.doors import Place, Visit, visit
from launch.preflight.hosts import RankFacts, find_facts
from launch.preflight.links import LinkFigures, Measured, measure_links, percentile
from launch.preflight.verdict import exit_code, judge_links
from llama.errors import UsageError
from llama.parallel.context import ParallelContext
from tests.helpers.netns import problem, two_hosts
from tests.helpers.programs import environment, run
from tests.helpers.ranks import RankInfo, run_layout, run_ranks

LOOPBACK = "127.0.0.1"
NAMES = {0: "hostA", 1: "hostA"}


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 21)], 95, 19.0),
        ([7.0], 95, 7.0),
        ([2.0, 1.0], 0, 1.0),
        ([2.0, 1.0], 100, 2.0),
    ],
)
def test_percentile_is_a_value_that_was_measured(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "nan"], ["--second", "1"]])
def test_bad_options_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        preflight.parse(words)


def test_facts_of_this_process() -> None:
    facts = find_facts(rank=3, local_rank=0)
    assert (facts.rank, facts.host, facts.pid) == (3, socket.gethostname(), os.getpid())
    assert facts.cores
    assert facts.ram_free_bytes > 0
    assert facts.versions["torch"] == facts.must_match["torch"] == torch.__version__
    assert RankFacts(**json.loads(json.dumps(vars(facts)))) == facts


def test_one_process_has_no_links(capfd: pytest.CaptureFixture[str]) -> None:
    assert preflight.main([]) == 0
    text = capfd.readouterr().out
    assert text.startswith("1 rank(s) on 1 host(s)\n")
    assert text.endswith("ready\n")
    assert "GB/s" not in text


def test_a_device_that_cannot_be_had_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    monkeypatch.setenv("LLAMA_DEVICE", "mps")
    assert preflight.main(["--json", str(tmp_path / "report.json")]) == 78
    assert "device 'mps' cannot be used" in capfd.readouterr().err
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["exit_code"] == 78
    assert "device 'mps' cannot be used" in saved["findings"][-1]["text"]


def test_two_ranks_are_ready(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    (code, text), quiet = run_ranks(whole_run, 2, ["--seconds", "0.2", "--json", str(file)])
    assert (code, quiet) == (0, (0, "")), text
    assert [line.split()[0] for line in text.splitlines() if "all-reduce" in line] == [
        "tp", "world",
    ]  # fmt: skip
    assert text.splitlines()[-1].startswith("ready")
    saved = json.loads(file.read_text())
    assert [(link["axis"], link["ranks"]) for link in saved["links"]] == [
        ("tp", [0, 1]), ("world", [0, 1]),
    ]  # fmt: skip
    for link in saved["links"]:
        assert 0 < link["median_s"] <= link["p95_s"]
        assert link["n_tries"] >= 20
        assert link["bytes_per_s"] > 0


def test_a_rank_with_another_version_ends_all(tmp_path: Path) -> None:
    (code, text), quiet = run_ranks(whole_run, 2, [], other_torch)
    assert (code, quiet) == (76, (76, ""))
    assert f"torch: {torch.__version__} on rank 0; 1.0 on rank 1 (" in text
    assert text.splitlines()[-1].startswith("preflight failed, exit status 76")
    assert "GB/s" not in text  # it never connected


def test_a_refused_port_ends_all() -> None:
    results = run_ranks(whole_run, 2, [], behind_a_firewall)
    assert [code for code, _ in results] == [69, 69]
    text = results[0][1]
    assert "rank 0 (host0) cannot reach rank 1 (host1) at 127.0.0.1:" in text
    assert "rank 1 (host1): " not in text  # its own door is open to itself
    assert "Connection refused" in text
    assert "1 of 2" in next(line for line in text.splitlines() if line.startswith("host1"))


def test_an_interface_that_one_rank_lacks_ends_all() -> None:
    results = run_ranks(whole_run, 2, [], without_interface)
    assert [code for code, _ in results] == [78, 78]
    assert "): GLOO_SOCKET_IFNAME is 'nowhere0', but " in results[0][1]


def test_results_that_are_wrong_on_one_rank_are_seen_there() -> None:
    first, second = run_layout(wrong_sums, tp=2)
    assert first == second
    (case,) = first.wrong
    assert (case.axis, case.ranks, case.seen_by) == ("tp", [0, 1], 1)
    assert case.n_wrong >= 20  # every sum of it
    assert exit_code(judge_links(first.wrong, NAMES)) == 69


def test_a_message_that_changes_on_its_way_is_seen_at_both_ends() -> None:
    measured, _ = run_layout(wrong_messages, pp=2)
    assert [(case.axis, case.ranks, case.seen_by) for case in measured.wrong] == [
        ("pp", [0, 1], 0), ("pp", [0, 1], 1),
    ]  # fmt: skip


def test_every_group_and_every_link_is_measured_once() -> None:
    """By a clock that goes on by a second whenever it is read; a message is half a round trip."""
    measured = run_layout(measure_by_seconds, tp=2, pp=2)
    assert measured[1:] == measured[:-1]
    whole: dict[str, Any] = {"median_s": 1.0, "p95_s": 1.0, "bytes_per_s": 2.0**24, "n_tries": 20}
    half: dict[str, Any] = {"median_s": 0.5, "p95_s": 0.5, "bytes_per_s": 2.0**25, "n_tries": 20}
    assert list(measured[0].figures) == [
        LinkFigures("tp", [0, 1], **whole),
        LinkFigures("tp", [2, 3], **whole),
        LinkFigures("pp", [0, 2], **half),
        LinkFigures("pp", [1, 3], **half),
        LinkFigures("world", [0, 1, 2, 3], **whole),
    ]
    assert measured[0].wrong == ()


@pytest.mark.slow
def test_as_a_command(tmp_path: Path) -> None:
    done = run(
        ["-m", "launch", "--nproc", "2", "preflight", "--json", "report.json"],
        cwd=tmp_path, env={"OMP_NUM_THREADS": None},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rank(s) on 1 host(s)" in done.stdout
    assert "ready" in done.stdout.splitlines()[-1]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [link["axis"] for link in saved["links"]] == ["tp", "world"]


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_missed() -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(closed_port())}
    done = run(["-m", "launch.preflight"], env={**place, **meeting, "LLAMA_INIT_TIMEOUT_S": "1"})
    assert done.returncode == 75, done.stderr
    assert "rank 1 did not start within 1 s (1 of 2 did: rank 0 on " in done.stderr


@pytest.mark.slow
def test_hosts_that_listen_where_the_other_cannot_come() -> None:
    if problem():
        pytest.skip(problem())
    with two_hosts() as hosts:
        meeting = {"MASTER_ADDR": hosts.a.ip, "MASTER_PORT": "29555", "WORLD_SIZE": "2"}
        programs = [
            host.popen(
                [sys.executable, "-m", "launch.preflight"],
                {
                    **environment({"GLOO_SOCKET_IFNAME": "lo"}),
                    **meeting,
                    "RANK": str(rank),
                    "LOCAL_RANK": "0",
                    "LOCAL_WORLD_SIZE": "1",
                },
                stdout=subprocess.PIPE,
            )
            for rank, host in enumerate((hosts.a, hosts.b))
        ]
        texts = [program.communicate(timeout=90)[0].decode() for program in programs]
    assert [program.returncode for program in programs] == [69, 69], texts
    ends = f"rank 0 ({hosts.a.name}) cannot reach rank 1 ({hosts.b.name}) at 127.0.0.1:"
    assert ends in texts[0]
    assert "2 rank(s) on 2 host(s)" in texts[0]


def whole_run(
    info: RankInfo, argv: list[str], prepare: Callable[[int], None] | None = None
) -> tuple[int, str]:
    """Exit status and output of one rank's preflight."""
    info.init_process_group()
    if prepare:
        prepare(info.rank)
    with redirect_stdout(io.StringIO()) as printed:
        code = preflight.main(argv)
    return code, printed.getvalue()


def other_torch(rank: int) -> None:
    if rank == 1:
        torch.__version__ = "1.0"  # type: ignore[assignment]


def without_interface(rank: int) -> None:
    if rank == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"


def behind_a_firewall(rank: int) -> None:
    """Two hosts by name; the first finds every port of the second closed."""
    socket.gethostname = lambda: f"host{rank}"

    def refused(visitor: int, place: Place) -> Visit:
        is_blocked = (visitor, place.rank) == (0, 1)
        return visit(visitor, replace(place, port=closed_port()) if is_blocked else place)

    doors.visit = refused


def measure(context: ParallelContext) -> Measured:
    return measure_links(context, seconds=0.1)


def measure_by_seconds(context: ParallelContext) -> Measured:
    probes.time = SimpleNamespace(perf_counter=partial(next, count()))
    return measure(context)


def wrong_sums(context: ParallelContext) -> Measured:
    rightly = context.tp.all_reduce
    if context.rank == 1:
        context.tp.all_reduce = lambda x: changed(rightly(x))  # type: ignore[method-assign]
    return measure(context)


def wrong_messages(context: ParallelContext) -> Measured:
    rightly = context.pp.recv

    def recv(out: torch.Tensor, src: int) -> torch.Tensor:
        return changed(rightly(out, src))

    if context.rank == 1:
        context.pp.recv = recv  # type: ignore[method-assign]
    return measure(context)


def changed(x: torch.Tensor) -> torch.Tensor:
    """One value of a message is off by one; single numbers are left alone."""
    if x.numel() > 1:
        x[-1] += 1
    return x


def closed_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        port: int = free.getsockname()[1]
    return port
