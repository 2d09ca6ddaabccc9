"""SLURM's shorthand, as its manual pages write it."""

from __future__ import annotations

import pytest

from llama.parallel.meeting.slurm import expand_hosts, first_host, tasks_on


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", "login"),
        ("a,b", "a b"),
        ("a[1-3,7]", "a1 a2 a3 a7"),
        ("gpu[08-11]", "gpu08 gpu09 gpu10 gpu11"),
        ("gpu[8-11]", "gpu8 gpu9 gpu10 gpu11"),
        ("n[098-101,0200]", "n098 n099 n100 n101 n0200"),
        ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
        ("x[3]-ib,y[1,5].cluster,z", "x3-ib y1.cluster y5.cluster z"),
        ("b[2-3],a1", "b2 b3 a1"),
    ],
)
def test_hosts(text: str, hosts: str) -> None:
    assert list(expand_hosts(text)) == hosts.split()
    assert first_host(text) == hosts.split()[0]


@pytest.mark.parametrize(
    "text", ["", ",", "a,", "a[1-", "a]", "a[]", "a[x]", "a[3-1]", "a[1-2-3]", "a b", "a[1[2]]"]
)
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        list(expand_hosts(text))


@pytest.mark.parametrize(
    ("text", "counts"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,12(x2),3", [1, 12, 12, 3])]
)
def test_tasks(text: str, counts: list[int]) -> None:
    assert [tasks_on(node, text) for node in range(len(counts))] == counts
    with pytest.raises(ValueError, match=f"node {len(counts)} is not among"):
        tasks_on(len(counts), text)


@pytest.mark.parametrize("text", ["", "x", "2(x)", "2(3)", "2,", "2(x3),,1", "-1"])
def test_what_is_no_list_of_tasks(text: str) -> None:
    with pytest.raises(ValueError, match="is no list"):
        tasks_on(0, text)
