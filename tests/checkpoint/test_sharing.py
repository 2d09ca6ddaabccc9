"""The ranks of a host load together: every rank its slices, every byte of the files once.

Bytes are what the kernel counts for each process, not what the loader says of itself.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.loading import ring as ring_module
from llama.checkpoint.loading.fetch import Fetch, Task
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.loader import load
from llama.checkpoint.loading.progress import Progress
from llama.checkpoint.loading.ring import PREFIX, Ring, shared_ring
from llama.checkpoint.loading.sharing import Handed
from llama.config import ModelConfig, ParallelConfig
from llama.errors import CheckpointError, PeerLostError, RankMismatchError
from llama.models.decoder import tensor_names
from llama.parallel import device
from llama.parallel.context import ParallelContext, initialize
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.ranks import RankDied, RankInfo, run_layout, run_ranks
from tests.helpers.stage_loads import load_stage
from tests.helpers.stage_weights import digests, expected_digests, stage_at

needs_proc = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts in /proc")

MEDIUM: dict[str, Any] = {
    "dim": 256,
    "n_layers": 4,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 32,
    "ffn_dim": 768,
    "vocab_size": 500,
}
"""Some 12 MB, beside which the bytes of /proc and of sockets do not count."""


@dataclass(frozen=True)
class Loaded:
    """What one rank has after loading, and the bytes that its process read meanwhile."""

    report: LoadReport
    digests: dict[str, str]
    io_bytes: int


def load_part(context: ParallelContext, folder: str) -> Loaded:
    done = load_stage(context, folder)
    return Loaded(done.report, digests(done.stage), done.asked_bytes)


def check(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    tp: int,
    pp: int = 1,
    item_bytes: int = 4,
) -> list[Loaded]:
    """Load on tp · pp ranks; `item_bytes` is an element's size in the files."""
    ranks = run_layout(load_part, str(folder), tp=tp, pp=pp)
    for rank, loaded in enumerate(ranks):
        stage = stage_at(config, tp, pp, rank)
        assert loaded.digests == expected_digests(stage, weights), f"rank {rank}"
        assert loaded.report.rank == rank
        assert loaded.report.peak_bytes <= loaded.report.bytes_held + 300_000_000
    held = sum(loaded.report.bytes_held for loaded in ranks) * item_bytes // 4
    assert sum(loaded.io_bytes for loaded in ranks) <= 1.05 * held
    assert sum(loaded.report.bytes_read for loaded in ranks) <= held
    assert not leftovers()
    return ranks


def leftovers() -> list[Path]:
    """Rings that stay. Other test processes, which run beside this one, have some for moments."""
    found = list(Path("/dev/shm").glob(f"{PREFIX}*"))
    end = time.monotonic() + 30
    while found and time.monotonic() < end:
        time.sleep(0.1)
        found = [ring for ring in found if ring.exists()]
    return found


@needs_proc
@pytest.mark.parametrize(
    ("tp", "pp", "changes", "n_files"),
    [
        (2, 1, {}, 1),
        (3, 1, {}, 2),
        (2, 2, {"attention_bias": True, "mlp_bias": True}, 1),
        (4, 1, {"n_kv_heads": 2}, 2),
        (1, 3, {}, 1),
    ],
)
def test_every_rank_gets_its_slices_and_every_byte_is_read_once(
    tp: int, pp: int, changes: dict[str, Any], n_files: int, tmp_path: Path
) -> None:
    config = tiny_config(**{**MEDIUM, **changes})
    weights = random_model(config)
    write_meta(tmp_path, config, weights, n_files=n_files, embedding_split=n_files - 1)
    ranks = check(tmp_path, config, weights, tp=tp, pp=pp)
    whole = sum(weight.nbytes for weight in weights.values())
    assert sum(rank.report.bytes_read for rank in ranks) == pytest.approx(whole, rel=0.01)
    if tp > 1 and n_files == 1:  # wo and w2 lie between each other
        assert all(rank.report.bytes_handed > 0 for rank in ranks)


@needs_proc
def test_files_in_half_precision_are_widened_by_each_rank(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    weights = random_model(config)
    write_meta(tmp_path, config, weights, dtype=torch.float16)
    rounded = {name: weight.half().float() for name, weight in weights.items()}
    check(tmp_path, config, rounded, tp=2, item_bytes=2)


@needs_proc
def test_slices_that_fit_the_files_are_read_by_their_owners(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    weights = random_model(config)
    write_meta(tmp_path, config, weights, n_files=2, embedding_split=1)
    ranks = check(tmp_path, config, weights, tp=2)
    embedding_and_norms = weights["tok_embeddings.weight"].nbytes + 9 * 4 * config.dim
    assert all(rank.report.bytes_handed <= embedding_and_norms for rank in ranks)


# Failures ---------------------------------------------------------------------------------------


def load_with_a_broken_read(context: ParallelContext, folder: str, broken: int) -> str:
    """Rank `broken` finds its file shorter than it was: as if it were replaced meanwhile."""
    if context.rank == broken:
        whole = DataFile.read_into

        def short(self: DataFile, buffer: memoryview, offset: int) -> None:
            copy = Path(folder, f"short-{context.rank}")
            if len(buffer) > 2**16 and not copy.exists():
                copy.write_bytes(self.path.read_bytes()[:offset])
                self.close()
                self.path = copy
            whole(self, buffer, offset)

        DataFile.read_into = short  # type: ignore[method-assign]
    with context.together("loading"):
        load_part(context, folder)
    return ""


@pytest.mark.parametrize("n_files", [1, 2])
def test_a_read_that_fails_ends_every_rank_with_one_cause(n_files: int, tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    write_meta(tmp_path, config, random_model(config), n_files=n_files)
    errors = run_layout(load_with_a_broken_read, str(tmp_path), 1, tp=2, expect_error=True)
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert "short-1 ends at byte" in str(errors[1])
    assert str(errors[0]).startswith("rank 1 (")
    assert str(errors[0]).endswith(f"failed while loading: CheckpointError: {errors[1]}")
    assert not leftovers()


def load_with_a_failing_copy(
    context: ParallelContext, folder: str, method: str, limit_bytes: int
) -> None:
    """Rank 1 can get something of the first turn into its memory, or the ring, but then fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    whole = getattr(Fetch, method)

    def failing(self: Fetch, ring: Ring, turn: int, handed: Handed) -> Task:
        task: Task = whole(self, ring, turn, handed)

        def run() -> None:
            task()
            raise CheckpointError("this copy failed")

        return run

    if context.rank == 1:
        setattr(Fetch, method, failing)
    with context.together("loading"):
        load_part(context, folder)


@pytest.mark.parametrize("limit_bytes", [4 * 2**20, 2**26])  # several turns, and one
@pytest.mark.parametrize("method", ["_put", "_take"])
def test_a_copy_that_fails_ends_every_rank_with_one_cause(
    method: str, limit_bytes: int, tmp_path: Path
) -> None:
    config = tiny_config(**MEDIUM)
    write_meta(tmp_path, config, random_model(config))
    errors = run_layout(
        load_with_a_failing_copy,
        *(str(tmp_path), method, limit_bytes),
        tp=3,
        expect_error=True,
    )
    assert [type(error) for error in errors] == [CheckpointError] * 3
    assert str(errors[1]) == "this copy failed"
    for other in (errors[0], errors[2]):
        assert str(other).startswith("rank 1 (")
        assert str(other).endswith("failed while loading: CheckpointError: this copy failed")
    assert not leftovers()


def load_until_killed(context: ParallelContext, folder: str, victim: int) -> None:
    if context.rank == victim:
        whole = DataFile.read_into

        def deadly(self: DataFile, buffer: memoryview, offset: int) -> None:
            whole(self, buffer, offset)
            if len(buffer) > 2**16:
                os.kill(os.getpid(), signal.SIGKILL)

        DataFile.read_into = deadly  # type: ignore[method-assign]
    with context.together("loading"):
        load_part(context, folder)


@pytest.mark.parametrize(("victim", "n_files"), [(0, 1), (1, 1), (1, 2)])
def test_a_rank_that_is_killed_is_missed(victim: int, n_files: int, tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    write_meta(tmp_path, config, random_model(config), n_files=n_files)
    errors = run_layout(load_until_killed, str(tmp_path), victim, tp=2, expect_error=True)
    assert isinstance(errors[victim], RankDied)
    assert isinstance(errors[1 - victim], PeerLostError)
    assert f"with rank {victim}: a rank is gone" in str(errors[1 - victim])
    assert not leftovers()


def load_own_folder(context: ParallelContext, folders: list[str]) -> None:
    with context.together("loading"):
        load_part(context, folders[context.rank])


def test_ranks_that_opened_different_files_do_not_exchange_them(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    weights = random_model(config)
    folders = [str(write_meta(tmp_path / f"x{n}", config, weights, n_files=n)) for n in (1, 2)]
    errors = run_layout(load_own_folder, folders, tp=2, expect_error=True)
    assert all(isinstance(error, RankMismatchError) for error in errors)


def load_with_small_files(context: ParallelContext, folder: str, limit_bytes: int) -> Loaded:
    """No file of this process may become larger than `limit_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return load_part(context, folder)


@pytest.mark.parametrize("limit_bytes", [2**20, 4 * 2**20])
def test_little_room_for_sharing_means_more_turns_or_reading_alone(
    limit_bytes: int, tmp_path: Path
) -> None:
    config = tiny_config(**{**MEDIUM, "ffn_dim": 4096})
    weights = random_model(config)
    write_meta(tmp_path, config, weights)
    ranks = run_layout(load_with_small_files, str(tmp_path), limit_bytes, tp=2)
    for rank, loaded in enumerate(ranks):
        assert loaded.digests == expected_digests(stage_at(config, 2, 1, rank), weights)
        assert (loaded.report.bytes_handed > 0) == (limit_bytes > 2**20)
    assert not leftovers()


def load_with_folders_of_their_own(context: ParallelContext, folder: str, own: str) -> Loaded:
    """The folder for what is shared has one name on all ranks, but is another one on each."""
    own_folder = Path(own, str(context.rank))
    own_folder.mkdir()
    os.chdir(own_folder)
    ring_module._folders = lambda: iter([Path("/proc/self/cwd")])
    loaded = load_part(context, folder)
    assert not list(own_folder.iterdir())
    return loaded


@needs_proc
def test_ranks_that_see_different_folders_read_alone(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    weights = random_model(config)
    folder, own = tmp_path / "x", tmp_path / "own"
    own.mkdir()
    write_meta(folder, config, weights)
    ranks = run_layout(load_with_folders_of_their_own, str(folder), str(own), tp=2)
    for rank, loaded in enumerate(ranks):
        assert loaded.digests == expected_digests(stage_at(config, 2, 1, rank), weights)
        assert loaded.report.bytes_handed == 0


def look_at_the_ring(context: ParallelContext) -> list[int]:
    """What each rank's slot of each turn holds after two turns, the file gone from its folder."""
    with shared_ring(context.local) as ring:
        assert ring is not None
        for turn in range(2):
            ring.slot(turn, context.rank).fill_(10 * turn + context.rank)
            context.local.barrier()
        slots = [ring.slot(turn, rank) for turn in range(2) for rank in range(3)]
        assert ring.slot_bytes % 4096 == 0
        assert not leftovers()
        context.local.barrier()
        return [int(slot.to(torch.int64).sum()) // ring.slot_bytes for slot in slots]


def test_the_ring_has_a_slot_a_rank_and_turn() -> None:
    assert run_layout(look_at_the_ring, tp=3) == [[0, 1, 2, 10, 11, 12]] * 3


# Several hosts ----------------------------------------------------------------------------------


def load_on_two_hosts(info: RankInfo, folder: str, broken: int | None) -> Loaded | str:
    """Ranks 0 and 1 on one host, 2 and 3 on another; the first read of rank `broken` fails.

    Without a broken rank it is what was loaded, else the error and whether others read on.
    """
    device._shared_memory = lambda: f"host {info.rank // 2}"  # type: ignore[assignment]
    info.init_process_group()
    context = initialize(ParallelConfig(tp_size=4))
    assert (context.local.size, context.local.rank) == (2, info.rank % 2)
    if broken is None:
        return load_part(context, folder)
    whole = DataFile.read_into
    n_reads = 0

    def slow(self: DataFile, buffer: memoryview, offset: int) -> None:
        nonlocal n_reads
        n_reads += 1
        if info.rank == broken:
            raise CheckpointError("this disk is broken")
        time.sleep(0.4)
        whole(self, buffer, offset)

    reader = open_checkpoint(folder)
    stage = stage_at(reader.config, 4, 1, info.rank)
    DataFile.read_into = slow  # type: ignore[method-assign]
    with (
        pytest.raises(CheckpointError) as caught,
        Progress(context.board()) as progress,
        context.together("loading"),
    ):
        load(
            stage,
            reader,
            device="cpu",
            all_names=tensor_names(reader.config),
            local=context.local,
            progress=progress,
        )
    return f"{caught.value}: {'gave up' if n_reads < 16 else 'read on'}"


def test_each_host_reads_for_itself(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    weights = random_model(config)
    write_meta(tmp_path, config, weights)
    ranks = run_ranks(load_on_two_hosts, 4, str(tmp_path), None)
    for rank, loaded in enumerate(ranks):
        assert loaded.digests == expected_digests(stage_at(config, 4, 1, rank), weights)


@pytest.mark.slow
def test_a_failure_on_one_host_stops_the_others(tmp_path: Path) -> None:
    config = tiny_config(**MEDIUM)
    write_meta(tmp_path, config, random_model(config))
    texts = run_ranks(load_on_two_hosts, 4, str(tmp_path), 3)
    assert texts[3] == "this disk is broken: gave up"
    for text in texts[:3]:
        assert re.fullmatch(
            r"rank 3 \(.*\) failed while loading: CheckpointError: .*: gave up", text
        )
