"""Which layout is chosen, and what is said against the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama.config import EngineConfig, ModelConfig, ParallelConfig
from llama.engine.choose import choose_layout, fit, judge, options
from llama.engine.decide import decide_layout
from llama.engine.footprint import Workload, footprint
from llama.engine.machine import Machine
from llama.engine.search import check_fits, pick
from llama.engine.sequence import SamplingParams
from llama.engine.source import ModelSource
from llama.errors import OutOfMemoryError, UnknownNameError, UsageError
from llama.llm import LLM
from llama.parallel.layout import ParallelLayout
from llama.parallel.wish import resolve_layout
from tests.helpers.checkpoints import tiny_config
from tests.helpers.llms import write_model
from tests.helpers.ranks import RankInfo, run_ranks

GIB = 2**30
PLENTY = Machine.of_gpus(1000 * GIB)
ENGINE = EngineConfig(max_seq_len=64, max_batch_size=2)
LLAMA_8B = tiny_config(
    dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14336, vocab_size=128256
)
LLAMA_70B = replace(LLAMA_8B, dim=8192, n_layers=80, n_heads=64, ffn_dim=28672)


def work_of(model: ModelConfig, **changes: Any) -> Workload:
    return Workload(model, replace(ENGINE, **changes), torch.bfloat16, "cuda")


def chosen(model: ModelConfig, n_ranks: int, machine: Machine = PLENTY, **sizes: Any) -> str:
    """The layout and the reason, "TPxPP: reason"."""
    choice = choose_layout(work_of(model), n_ranks, machine, **sizes)
    return f"{choice.layout.tp_size}x{choice.layout.pp_size}: {choice.reason}"


# Which ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_kv_heads", "n_ranks", "expected"),
    [
        (8, 1, "1x1: tp 1 x pp 1 (1 rank)"),
        (8, 4, "4x1: tp 4 x pp 1 (4 ranks)"),
        (8, 8, "8x1: tp 8 x pp 1 (8 ranks)"),
        (2, 4, "2x2: tp 2 x pp 2 (4 ranks); tp 4 would copy KV heads"),
        (8, 3, "1x3: tp 1 x pp 3 (3 ranks); tp 3 would deal 8 KV heads unevenly"),
        (
            4,
            6,
            "2x3: tp 2 x pp 3 (6 ranks); tp 6 would copy KV heads; tp 3 would deal 4 KV heads "
            "unevenly",
        ),
        (1, 3, "1x3: tp 1 x pp 3 (3 ranks); tp 3 would copy KV heads"),
    ],
)
def test_tp_is_as_wide_as_it_is_good(n_kv_heads: int, n_ranks: int, expected: str) -> None:
    model = tiny_config(n_layers=6, n_kv_heads=n_kv_heads)
    assert chosen(model, n_ranks) == expected


def test_more_ranks_than_layers_leave_only_tp() -> None:
    reason = chosen(tiny_config(n_layers=1, n_kv_heads=2), 4)
    assert reason == "4x1: tp 4 x pp 1 (4 ranks); it would copy KV heads"


def test_tp_stays_on_a_host_and_stages_cross_it() -> None:
    hosts_of_4 = replace(PLENTY, ranks_a_host=4)
    reason = chosen(tiny_config(n_layers=6), 8, hosts_of_4)
    assert reason == "4x2: tp 4 x pp 2 (8 ranks); tp 8 would span hosts of 4 ranks"
    hosts_of_6 = replace(PLENTY, ranks_a_host=6)
    assert chosen(tiny_config(n_layers=12, n_kv_heads=8), 12, hosts_of_6).startswith("2x6: ")


def test_a_size_that_was_given_stays() -> None:
    model = tiny_config(n_layers=6, n_kv_heads=2)
    assert chosen(model, 4, tp=4).startswith("4x1: ")
    assert chosen(model, 4, pp=4).startswith("1x4: ")
    assert chosen(model, 6, tp=3, pp="auto").startswith("3x2: ")
    with pytest.raises(UsageError, match="no layout with tp 3 and pp auto has 4 ranks"):
        chosen(model, 4, tp=3)


def test_what_fits_comes_before_what_is_even() -> None:
    """Three stages leave a vocabulary whole, of which tp gives each rank a third."""
    model = tiny_config(n_kv_heads=1, vocab_size=4_000_000)
    assert chosen(model, 3).startswith("1x3: ")
    wide, deep = (
        max(
            rank.total_bytes + rank.prompt_logprobs_bytes
            for rank in footprint(work_of(model), layout).ranks
        )
        for layout in (ParallelLayout(3, 1), ParallelLayout(1, 3))
    )
    assert wide < deep
    between = Machine.of_gpus((wide + deep) // 2)
    assert chosen(model, 3, between) == "3x1: tp 3 x pp 1 (3 ranks); it would copy KV heads"


def test_an_architecture_without_a_model_is_no_layout() -> None:
    with pytest.raises(UnknownNameError, match="architecture mamba has no model"):
        chosen(tiny_config(architecture="mamba"), 2)


def test_ranks_that_no_layout_can_use() -> None:
    with pytest.raises(UsageError, match=r"no layout of 11 ranks: tp_size 11 exceeds n_heads 8"):
        chosen(tiny_config(), 11)
    refused, *_ = options(work_of(tiny_config()), 16, PLENTY)
    assert refused.fit is None and "tp_size 16 exceeds n_heads 8" in refused.refused


# Fit --------------------------------------------------------------------------------------------


def test_a_fit_is_what_the_engine_would_do() -> None:
    """To the byte: one less than is enough for all blocks leaves one out, and so does the least."""
    work = work_of(tiny_config(), memory_fraction=0.8)
    found = footprint(work, ParallelLayout())
    (rank,) = found.ranks
    left = next(n for n in range(10 * rank.kv_cache_bytes) if int(n * 0.8) >= rank.kv_cache_bytes)
    enough = rank.weight_bytes + rank.activation_bytes + left
    full = fit(found, work, memory_bytes=enough)
    assert full.is_full and full.runs and full.num_blocks == rank.num_blocks == 8
    part = fit(found, work, memory_bytes=enough - 1)
    assert part.runs and not part.is_full and part.num_blocks == 7
    none = fit(found, work, memory_bytes=rank.weight_bytes // 2)
    assert not none.runs and none.num_blocks == 0
    again = fit(found, work, memory_bytes=none.memory_bytes + none.short_bytes)
    assert again.runs and again.num_blocks == 4  # one sequence
    less = fit(found, work, memory_bytes=none.memory_bytes + none.short_bytes - 1)
    assert less.short_bytes == 1 and less.num_blocks == 3


def test_the_poorest_rank_is_named() -> None:
    """The last stage has the head, and more layers than fit beside it."""
    work = work_of(tiny_config(n_layers=4, vocab_size=50_000))
    found = footprint(work, ParallelLayout(1, 2))
    poorest = max(found.ranks, key=lambda rank: rank.weight_bytes + rank.activation_bytes)
    assert poorest.rank == 1
    lacking = fit(found, work, memory_bytes=poorest.weight_bytes)
    assert not lacking.runs and lacking.poorest_rank == 1


def test_what_does_not_fit_names_need_have_and_a_way_out() -> None:
    work = work_of(LLAMA_70B, max_seq_len=2048, max_batch_size=8)
    machine = Machine.of_gpus(80 * 10**9)
    choice = pick(work, machine, tp=1, pp=1)
    with pytest.raises(OutOfMemoryError) as caught:
        check_fits(choice.option, work, machine)
    text = str(caught.value)
    for part in (
        "tp 1 x pp 1 (1 rank) does not fit: rank 0 needs 13",
        "GiB to hold one sequence of max_seq_len 2048 and has 74.51 GiB",
        "layouts that would: tp 2 x pp 1 (2 ranks), tp 1 x pp 3 (3 ranks), tp 4 x pp 1 (4 ranks);",
    ):
        assert part in text, text
    nothing = Machine.of_gpus(10**6)
    with pytest.raises(OutOfMemoryError, match="no layout of up to 64 ranks would"):
        check_fits(judge(work, ParallelLayout(8), nothing), work, nothing)


def test_as_few_devices_as_hold_a_full_batch() -> None:
    work = work_of(LLAMA_70B, max_seq_len=8192, max_batch_size=8)
    machine = Machine.of_gpus(80 * 10**9)
    choice = pick(work, machine, tp="auto", pp="auto")
    fits = choice.option.fit
    assert fits is not None and fits.is_full
    fewer = choice.layout.world_size - 1
    for option in options(work, fewer, machine):
        assert option.fit is None or not option.fit.is_full
    assert choice.layout.world_size == 3


def test_auto_on_this_host_is_one_rank_a_device() -> None:
    host = Machine(1, 10**12, 2**20)
    work = replace(work_of(LLAMA_8B), device_type="cpu")
    choice = pick(work, host, tp="auto", pp="auto")
    assert choice.layout == ParallelLayout()
    assert choice.reason.endswith("; one process uses all cores of this host")
    assert pick(work, host, tp="auto", pp=2).layout == ParallelLayout(1, 2)
    gpus = replace(host, n_devices=4)
    assert pick(work, gpus, tp="auto", pp="auto").layout == ParallelLayout(4, 1)
    assert pick(work, gpus, tp="auto", pp=2).layout == ParallelLayout(2, 2)
    assert pick(work, gpus, tp="auto", pp="auto", n_ranks=2).layout == ParallelLayout(2, 1)


def test_ranks_that_share_a_device_share_its_memory() -> None:
    host = Machine(1, 900, 2**20)
    assert [host.rank_bytes(n) for n in (1, 2, 3)] == [900, 450, 300]
    two_gpus = Machine(2, 900, 4)
    assert [two_gpus.rank_bytes(n) for n in (1, 2, 3, 4, 8)] == [900, 900, 450, 450, 450]
    assert [Machine.of_gpus(900).rank_bytes(n) for n in (1, 8, 64)] == [900, 900, 900]


# In the ranks -----------------------------------------------------------------------------------


def auto_job(info: RankInfo, ckpt_dir: str) -> tuple[Any, ...]:
    info.init_process_group()
    llm = LLM(ckpt_dir, tp="auto", max_seq_len=64, max_batch_size=2)
    layout = llm.context.layout
    return (layout.tp_size, layout.pp_size), llm.layout_reason, answer(llm)


def answer(llm: LLM) -> tuple[int, ...]:
    (output,) = llm.generate([[1, 60, 8, 8, 23]], SamplingParams(temperature=0))
    return output.token_ids


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of two KV heads and three layers."""
    return write_model(tmp_path_factory.mktemp("choose") / "ckpt")


def test_ranks_choose_alike_and_run(ckpt_dir: str) -> None:
    alone = LLM(ckpt_dir, pp="auto", max_seq_len=64, max_batch_size=2)
    alone_says = "tp 1 x pp 1 (1 rank); one process uses all cores of this host"
    assert alone.layout_reason == alone_says
    reason = "tp 2 x pp 2 (4 ranks); tp 4 would copy KV heads"
    assert run_ranks(auto_job, 4, ckpt_dir) == [((2, 2), reason, answer(alone))] * 4


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As one of several ranks that a launcher started; nobody is met."""

    def launch(**variables: str) -> None:
        here = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in {**here, **variables}.items():
            monkeypatch.setenv(name, value)

    return launch


def decided(ckpt_dir: str, tp: Any, pp: Any) -> tuple[Any, Any]:
    wish = ParallelConfig(tp_size=tp, pp_size=pp, device="cpu")
    parallel, _ = decide_layout(ModelSource(ckpt_dir), wish, engine_options={"max_seq_len": 64})
    return parallel.tp_size, parallel.pp_size


def test_the_launch_variables_tell_how_many(ckpt_dir: str, launched: Callable[..., None]) -> None:
    launched(WORLD_SIZE="4", LOCAL_WORLD_SIZE="4")
    assert decided(ckpt_dir, "auto", "auto") == (2, 2)
    assert decided(ckpt_dir, "auto", None) == (2, 2)
    assert decided(ckpt_dir, 4, "auto") == (4, 1)
    launched(WORLD_SIZE="2", LOCAL_WORLD_SIZE="1")
    assert decided(ckpt_dir, "auto", "auto") == (1, 2)


def test_what_the_launcher_was_told_stays(ckpt_dir: str, launched: Callable[..., None]) -> None:
    launched(WORLD_SIZE="4", LLAMA_TP_SIZE="4", LLAMA_PP_SIZE="1")
    assert decided(ckpt_dir, "auto", "auto") == (4, 1)
    launched(WORLD_SIZE="2", LLAMA_TP_SIZE="1", LLAMA_PP_SIZE="")
    assert decided(ckpt_dir, "auto", "auto") == (1, 2)


def test_numbers_are_not_looked_into() -> None:
    assert decided("no such folder", 3, None) == (3, None)


def test_auto_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a checkpoint"):
        resolve_layout(ParallelConfig(tp_size="auto"), world_size=2, existing=None)
