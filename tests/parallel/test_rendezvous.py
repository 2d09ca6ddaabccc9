"""torchrun's variables, and what a rank is told when the others do not come."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch.distributed import FileStore

from llama.errors import HardwareError, RankTimeoutError
from llama.parallel.rendezvous import Launched, World, meet, share_through_store
from tests.helpers.ranks import RankInfo, run_ranks

FULL = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "hostA",
    "MASTER_PORT": "29500",
}


def test_all_variables() -> None:
    assert Launched.from_environment({**FULL, "OTHER": "x"}) == Launched(1, 4, 0, "hostA:29500")


@pytest.mark.parametrize("environ", [{}, {"OTHER": "x"}, dict.fromkeys(FULL, "")])
def test_none_of_them_is_a_process_that_nobody_launched(environ: dict[str, str]) -> None:
    assert Launched.from_environment(environ) is None


@pytest.mark.parametrize("missing", FULL)
def test_a_missing_one_is_named(missing: str) -> None:
    environ = {name: text for name, text in FULL.items() if name != missing}
    with pytest.raises(HardwareError, match=f"but {missing} missing; start with torchrun"):
        Launched.from_environment(environ)


def test_every_missing_one_is_named() -> None:
    with pytest.raises(HardwareError, match="but WORLD_SIZE, LOCAL_RANK, MASTER_PORT missing"):
        Launched.from_environment({"RANK": "0", "MASTER_ADDR": "hostA"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK 4 is outside WORLD_SIZE 4"),
        ({"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE must be a whole number, got 'four'"),
        ({"MASTER_PORT": "29500/tcp"}, "MASTER_PORT must be"),
    ],
)
def test_nonsense_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        Launched.from_environment({**FULL, **change})


def test_nobody_launched_and_no_group_means_nobody_to_meet() -> None:
    assert meet(None, timeout_s=1) is None


def test_a_port_that_is_taken_is_a_matter_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {**FULL, "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, text in environ.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(HardwareError, match=f"could not meet at 127.0.0.1:{port}"):
            meet(Launched.from_environment(environ), timeout_s=5)


def share_twice(info: RankInfo) -> list[list[str]]:
    store = FileStore(info.init_file, info.world_size)
    world = World(info.rank, info.world_size, None, store, is_given=True)
    return [share_through_store(world, f"{word} {info.rank}") for word in ("first", "second")]


def test_texts_through_the_store_belong_to_their_call() -> None:
    expected = [[f"{word} {rank}" for rank in range(3)] for word in ("first", "second")]
    assert run_ranks(share_twice, 3) == [expected] * 3


def share_alone(info: RankInfo) -> None:
    store = FileStore(info.init_file, 2)
    store.set_timeout(timedelta(seconds=1))
    share_through_store(World(0, 2, None, store, is_given=True), "hello")


def test_a_rank_that_does_not_come_is_a_timeout() -> None:
    (error,) = run_ranks(share_alone, 1, expect_error=True)
    assert type(error) is RankTimeoutError
    assert "not all of 2 ranks came" in str(error)
