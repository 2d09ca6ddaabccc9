"""The first failure is kept, a cause before its consequences, and reading it never hangs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from torch.distributed import FileStore, HashStore

from llama.errors import CheckpointError, PeerLostError, RankTimeoutError
from llama.parallel import failure
from llama.parallel.failure import CAUSE_KEY, FailureRecord, describe

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


@pytest.fixture(params=["hash", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return HashStore() if request.param == "hash" else FileStore(str(tmp_path / "store"), 1)


def record(store: Store | None, rank: int) -> FailureRecord:
    return FailureRecord(store, rank=rank, host=f"host{rank}")


def test_the_first_one_wins(store: Store) -> None:
    first, second = record(store, 1), record(store, 2)
    assert first.read() is None
    first.phase = "loading"
    first.write(CheckpointError("line one\n  line two"))
    second.write(CheckpointError("later"))
    text = second.read()
    assert text is not None
    assert text.startswith("rank 1 (host1, pid ")
    assert text.endswith("while loading: CheckpointError: line one line two")


@pytest.mark.parametrize("consequence", [PeerLostError("gone"), RankTimeoutError("late")])
def test_a_cause_comes_before_its_consequences(store: Store, consequence: Exception) -> None:
    record(store, 0).write(consequence)
    assert "rank 0" in (record(store, 2).read() or "")
    record(store, 1).write(CheckpointError("cause"))
    assert "rank 1" in (record(store, 2).read() or "")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", json.dumps({"rank": 1})])
def test_a_broken_record_is_no_record(store: Store, text: str) -> None:
    store.set(CAUSE_KEY, text)
    assert record(store, 0).read() is None


def test_without_a_store_there_is_nothing_to_say() -> None:
    alone = record(None, 0)
    alone.write(CheckpointError("x"))
    assert alone.read() is None


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
    stuck.write(CheckpointError("x"))
    assert stuck.read() is None
    assert not store.end.is_set()
    store.end.set()


def test_an_error_without_text_is_its_class() -> None:
    assert describe(MemoryError()) == "MemoryError"
    assert describe(CheckpointError("a\n\nb")) == "CheckpointError: a b"
