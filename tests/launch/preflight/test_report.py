"""What preflight concludes from what it found, its tables and its JSON. Nothing is started."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.doors import Visit
from launch.preflight.hosts import RankFacts, hosts_of
from launch.preflight.links import LinkFigures, Measured, WrongResults
from launch.preflight.report import Report, Teller, number
from launch.preflight.verdict import (
    Finding,
    exit_code,
    judge_hosts,
    judge_links,
    judge_visits,
)
from llama.errors import UsageError

GIB = 1024**3
FACTS = RankFacts(
    rank=0,
    host="hostA",
    machine="a",
    pid=1,
    device="cpu",
    device_problem="torch sees no GPU",
    has_driver=False,
    gpu_free_bytes=None,
    gpu_total_bytes=None,
    cores=[0, 1, 2, 3],
    n_threads=2,
    ram_free_bytes=8 * GIB,
    shm_free_bytes=GIB,
    max_open_files=1024,
    n_oom_kills=0,
    versions={"python": "3.12.1", "torch": "2.13.0"},
    must_match={"torch": "2.13.0"},
)
TWO_HOSTS = [
    FACTS,
    replace(FACTS, rank=1),
    replace(FACTS, rank=2, host="hostB", machine="b"),
]
NAMES = {0: "hostA", 1: "hostA", 2: "hostB"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (12.34, "12.3"), (12345.6, "12,346"), (0.0, "0")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 0], 0), ([0, 69], 69), ([69, 78], 78), ([78, 69, 76], 76), ([76, 75], 75)],
)
def test_the_gravest_finding_gives_the_status(codes: list[int], expected: int) -> None:
    assert exit_code([Finding("", code) for code in codes]) == expected


def test_ranks_of_one_machine_are_one_host() -> None:
    hosts = hosts_of(TWO_HOSTS)
    assert [[rank.rank for rank in host.ranks] for host in hosts] == [[0, 1], [2]]
    assert [(host.first_rank, host.n_cores, host.n_threads) for host in hosts] == [
        (0, 4, 4), (2, 4, 2),
    ]  # fmt: skip
    assert judge_hosts(hosts) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shm_free_bytes": 63 * 1024**2}, "hostB has 63 MiB free in /dev/shm"),
        ({"cores": [], "n_threads": 1}, "1 ranks share 0 core(s) of hostB"),
        ({"n_threads": 5}, "5 threads of 1 rank(s) share 4 core(s) of hostB: set OMP_NUM_THREADS"),
        ({"has_driver": True}, "hostB has a GPU driver that torch cannot use (torch sees no GPU)"),
        ({"max_open_files": 70}, "hostB lets a process open 70 files"),
        ({"n_oom_kills": 2}, "hostB has killed 2 process(es)"),
    ],
)
def test_doubts_are_warnings(changes: dict[str, Any], words: str) -> None:
    facts = [*TWO_HOSTS[:2], replace(TWO_HOSTS[2], **changes)]
    findings = judge_hosts(hosts_of(facts))
    assert [finding.exit_code for finding in findings] == [0]
    assert words in findings[0].text


def test_a_working_gpu_and_its_driver_are_no_doubt() -> None:
    gpu = replace(FACTS, device="some GPU", device_problem="", has_driver=True)
    assert judge_hosts(hosts_of([gpu])) == []


def test_versions_that_differ_fail() -> None:
    odd = replace(TWO_HOSTS[2], must_match={"torch": "2.12.0"})
    (finding,) = judge_hosts(hosts_of([*TWO_HOSTS[:2], odd]))
    assert finding.exit_code == 76
    assert "torch: 2.13.0 on ranks 0, 1; 2.12.0 on rank 2 (hostB)" in finding.text


def test_a_closed_way_names_both_ends() -> None:
    (finding,) = judge_visits([Visit(0, 0), Visit(2, 0, problem="10.0.0.1:9: refused")], NAMES)
    assert finding.exit_code == 69
    assert "rank 2 (hostB) cannot reach rank 0 (hostA) at 10.0.0.1:9: refused" in finding.text


def test_a_host_that_cannot_listen_is_to_blame_itself() -> None:
    (finding,) = judge_visits([Visit(2, 2, problem="no such interface")], NAMES)
    assert finding == Finding("rank 2 (hostB): no such interface", 78)


def test_many_closed_ways_are_counted() -> None:
    findings = judge_visits([Visit(2, 0, problem="x")] * 20, NAMES)
    assert len(findings) == 9
    assert findings[-1] == Finding("and 12 more ways between hosts are closed", 69)


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(1.5, "1.5 s ahead of"), (-90.0, "90.0 s behind"), (0.9, None)]
)
def test_clocks_apart_are_a_warning(ahead_s: float, words: str | None) -> None:
    findings = judge_visits([Visit(0, 2, round_trip_s=0.1, clock_ahead_s=ahead_s)], NAMES)
    expected = [] if words is None else [f"the clock of hostB is {words} that of hostA"]
    assert [finding.text.partition(";")[0] for finding in findings] == expected
    assert exit_code(findings) == 0


def test_wrong_results_name_the_peers() -> None:
    (finding,) = judge_links([WrongResults("pp", [0, 2], 2, 3)], NAMES)
    assert finding.exit_code == 69
    assert "rank 2 (hostB) got 3 wrong result(s) over pp with rank 0 (hostA)" in finding.text


def test_tables_and_json_have_the_same_figures(tmp_path: Path) -> None:
    gpu = replace(
        TWO_HOSTS[2], device="H200", device_problem="", gpu_free_bytes=GIB, gpu_total_bytes=3 * GIB
    )
    report = Report(
        hosts_of([*TWO_HOSTS[:2], gpu]),
        visits=[Visit(0, 2, round_trip_s=0.0015, clock_ahead_s=-0.25), Visit(2, 2, problem="x")],
        measured=Measured((LinkFigures("pp", [0, 2], 1e-4, 2e-4, 5e8, 20),)),
    )
    with redirect_stdout(io.StringIO()) as printed:
        teller = Teller(tmp_path / "report.json")
        teller.begin(report)
        begun = json.loads((tmp_path / "report.json").read_text())
        teller.end(report)
    text = printed.getvalue()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "hostB 2 1 x H200 4 2 8 1,024 1 of 3 1 of 2 1.500 -250.00" in rows
    assert "pp 0, 2 hostA, hostB send 100 200 20 0.5" in rows
    assert "every rank: python 3.12.1, torch 2.13.0\n" in text
    assert "rank(s) 0, 1 (hostA): no CUDA: torch sees no GPU\n" in text
    assert text.splitlines()[-1] == "preflight failed, exit status 78"

    assert begun["exit_code"] is None
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["links"][0]["bytes_per_s"] == 5e8
    assert [rank["host"] for rank in saved["ranks"]] == ["hostA", "hostA", "hostB"]
    assert saved["exit_code"] == 78
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--json .*missing/report\.json cannot be written"):
        Teller(tmp_path / "missing" / "report.json").begin(Report([]))
