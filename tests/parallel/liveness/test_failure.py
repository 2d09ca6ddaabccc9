"""The first failure is kept, a cause before its consequences, and reading it never hangs."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from torch.distributed import FileStore, HashStore

from llama.errors import CheckpointError, PeerLostError, RankTimeoutError
from llama.parallel.liveness import failure
from llama.parallel.liveness.failure import (
    CAUSE_KEY,
    Failure,
    FailureRecord,
    describe,
    publish_ended,
)
from llama.parallel.liveness.whereabouts import Phase

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

KILLED = Failure(
    rank=3, host="hostB", pid=77, phase="STEP", doing="generate", step=41, layer=3, file=None,
    error="killed by SIGKILL", exit_code=69,
)  # fmt: skip


@pytest.fixture(params=["hash", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return HashStore() if request.param == "hash" else FileStore(str(tmp_path / "store"), 1)


def record(store: Store | None, rank: int) -> FailureRecord:
    made = FailureRecord(store, rank=rank, host=f"host{rank}", job_store=store)
    made.patience_s = 0.3
    return made


def test_a_record_is_one_line_and_survives_the_store() -> None:
    expected = "rank 3 (hostB, pid 77) in STEP (generate, step 41, layer 3): killed by SIGKILL"
    assert KILLED.line == expected
    assert Failure.from_json(KILLED.to_json()) == KILLED


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "3"}, {"exit_code": 0}, {"exit_code": 256}, {"is_leaving": 1}, {"error": None},
        {"layer": "x"}, {"more": 1},
    ],
)  # fmt: skip
def test_a_record_of_other_values_is_none(change: dict[str, object]) -> None:
    assert Failure.from_json(json.dumps({**asdict(KILLED), **change})) is None


def test_the_first_one_wins(store: Store) -> None:
    first, second = record(store, 1), record(store, 2)
    assert first.read() is None
    with first.whereabouts.during(Phase.LOAD, "loading"):
        first.whereabouts.at_file("w.pth")
        first.publish(CheckpointError("line one\n  line two"))
    second.publish(CheckpointError("later"))
    found = second.read()
    assert found is not None
    assert found.line == (
        f"rank 1 (host1, pid {os.getpid()}) in LOAD (loading, w.pth): "
        "CheckpointError: line one line two"
    )
    assert (found.exit_code, found.traceback) == (65, "")


def test_the_place_is_where_the_error_was_raised(store: Store) -> None:
    own = record(store, 1)
    with pytest.raises(CheckpointError) as raised, own.whereabouts.during(Phase.LOAD, "loading"):
        own.whereabouts.at_file("w.pth")
        raise CheckpointError("x")
    own.publish(raised.value)
    found = own.read()
    assert found is not None and (found.phase, found.file) == ("LOAD", "w.pth")
    assert own.whereabouts.phase is Phase.INIT


def test_the_traceback_of_an_unexpected_error_goes_with_it(store: Store) -> None:
    try:
        raise KeyError("x" * 20000)
    except KeyError as error:
        record(store, 1).publish(error)
    found = record(store, 2).read()
    assert found is not None and found.exit_code == 70
    assert len(found.traceback.encode()) <= 8192 and found.traceback.endswith("x'\n")


@pytest.mark.parametrize("consequence", [PeerLostError("gone"), RankTimeoutError("late")])
def test_a_cause_comes_before_its_consequences(store: Store, consequence: Exception) -> None:
    record(store, 0).publish(consequence)
    found = record(store, 2).read()
    assert found is not None and found.rank == 0
    record(store, 1).publish(CheckpointError("cause"))
    found = record(store, 2).read()
    assert found is not None and found.rank == 1


def test_what_a_launcher_saw_is_a_cause(store: Store) -> None:
    record(store, 0).publish(PeerLostError("gone"))
    publish_ended(store, KILLED)
    publish_ended(store, replace(KILLED, rank=4))
    assert record(store, 2).read() == KILLED


def test_a_rank_that_hung_up_may_say_later_that_it_leaves(store: Store) -> None:
    own = record(store, 1)
    own.publish(CheckpointError("x"), is_leaving=False)
    first = record(store, 2).read()
    assert first is not None and not first.is_leaving
    record(store, 2).publish(CheckpointError("y"))
    own.publish(CheckpointError("x"))
    # both records are of this process, so the rank tells them apart
    found = record(store, 0).read()
    assert found == replace(first, is_leaving=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", json.dumps({"rank": 1})])
def test_a_broken_record_is_no_record(store: Store, text: str) -> None:
    store.set(CAUSE_KEY, text)
    assert record(store, 0).read() is None


def test_without_a_store_there_is_nobody_to_tell() -> None:
    alone = record(None, 0)
    assert alone.read() is None
    assert str(alone.explain(PeerLostError("gone"))) == "gone"


def test_a_lost_peer_is_explained_by_what_came_first(store: Store) -> None:
    record(store, 1).publish(CheckpointError("cause"))
    lost = record(store, 0)
    explained = lost.explain(PeerLostError("gone"))
    assert type(explained) is PeerLostError and explained.exit_code == 65
    assert str(explained).startswith("gone; first failure: rank 1 (host1, pid ")
    assert lost.is_told


def test_a_cause_may_come_late(store: Store) -> None:
    """A launcher, or a look at the processes, takes a moment."""
    lost = record(store, 0)
    lost.patience_s = 20.0
    timer = threading.Timer(0.2, publish_ended, [store, KILLED])
    timer.start()
    explained = lost.explain(PeerLostError("gone"))
    timer.join()
    assert str(explained) == f"gone; first failure: {KILLED.line}"
    assert (explained.exit_code, PeerLostError.exit_code) == (69, 69)
    assert lost.found == KILLED, "the postmortem is about the cause"


def test_without_a_cause_the_consequence_of_another_rank_will_do(store: Store) -> None:
    record(store, 1).publish(PeerLostError("rank 2 is gone"))
    assert "rank 2 is gone" in str(record(store, 0).explain(PeerLostError("gone")))
    own = FailureRecord(store, rank=1, host="host1")
    own.patience_s = 0.1
    assert str(own.explain(PeerLostError("gone"))) == "gone", "its own is no explanation"


class Stuck:
    """A store whose host is cut off: it answers when nobody waits any more."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def check(self, *key_and_values: object) -> bool:
        return self.end.wait()

    compare_set = check


def test_a_store_that_does_not_answer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "STORE_PATIENCE_S", 0.2)
    store = Stuck()
    stuck = record(store, 0)  # type: ignore[arg-type]
    stuck.publish(PeerLostError("x"))
    assert stuck.read() is None
    assert str(stuck.explain(PeerLostError("gone"))) == "gone"
    assert not store.end.is_set()
    store.end.set()


def test_an_error_without_text_is_its_class() -> None:
    assert describe(MemoryError()) == "MemoryError"
    assert describe(CheckpointError("a\n\nb")) == "CheckpointError: a b"
