"""The plan against the real thing: parameters and cache to the byte, the whole as measured."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.config import EngineConfig, ModelConfig
from llama.engine.build import load_stage
from llama.engine.engine import Engine
from llama.engine.footprint import (
    Footprint,
    RankFootprint,
    Workload,
    empty_stage,
    footprint,
    read_bytes,
)
from llama.engine.sequence import SamplingParams
from llama.errors import UnknownNameError, UsageError
from llama.layers.embedding import ROWS_AT_ONCE
from llama.models.decoder import stages
from llama.parallel.context import ParallelContext
from llama.parallel.layout import ParallelLayout
from tests.helpers import memory_use
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.mistral_files import write_mistral
from tests.helpers.ranks import run_layout

CONFIGS = {
    "llama": tiny_config(n_kv_heads=4, vocab_size=61),
    "bias": tiny_config(attention_bias=True, mlp_bias=True),
    "half": tiny_config(n_kv_heads=1, rope_style="half"),
    "tied": tiny_config(tied_embeddings=True, vocab_size=63),
    "gpt2": tiny_gpt2_config(max_positions=50, vocab_size=61),
}
ENGINE = EngineConfig(max_seq_len=50, max_batch_size=3, block_size=16, max_num_batched_tokens=40)
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (4, 3)]


def plan_of(
    model: ModelConfig,
    tp: int,
    pp: int,
    *,
    engine: EngineConfig = ENGINE,
    dtype: torch.dtype = torch.float32,
) -> Footprint:
    return footprint(Workload(model, engine, dtype), ParallelLayout(tp, pp))


# Exact parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_real_modules(
    name: str, tp: int, pp: int, dtype: torch.dtype
) -> None:
    model = CONFIGS[name]
    work, layout = Workload(model, ENGINE, dtype), ParallelLayout(tp, pp)
    for planned in footprint(work, layout).ranks:
        cut = stages(model, pp_size=pp)[planned.pp_rank]
        stage = empty_stage(work, layout, planned.rank, cut)
        stage.materialize(torch.device("cpu"))
        tensors = [*stage.parameters(), *stage.buffers()]
        assert not any(tensor.is_meta for tensor in tensors)
        assert planned.weight_bytes == sum(tensor.nbytes for tensor in tensors)
        assert planned.layers == stage.stage.layers


def test_the_numbers_of_a_model_counted_by_hand() -> None:
    """One llama layer of dim 8, 2 heads of 4, 1 KV head, 12 columns, 10 words; tp 2, pp 1."""
    model = tiny_config(
        dim=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=12, vocab_size=11
    )
    engine = EngineConfig(max_seq_len=20, max_batch_size=3, block_size=16)
    first, second = plan_of(model, 2, 1, engine=engine, dtype=torch.bfloat16).ranks
    matrices = 8 * 4 + 2 * 4 * 8 + 4 * 8 + 3 * 6 * 8  # wq, wk and wv, wo, w1 to w3
    vocabulary, norms, rope = 2 * 6 * 8, 3 * 8, 2 * 20 * 2 * 4
    assert first.weight_bytes == 2 * (matrices + vocabulary + norms) + rope
    assert second.weight_bytes == first.weight_bytes
    assert (first.heads, first.kv_heads) == (range(0, 1), range(0, 1))
    assert (second.heads, second.kv_heads) == (range(1, 2), range(0, 1))
    assert first.block_bytes == 2 * 16 * 4 * 2
    assert first.num_blocks == 3 * 2  # 20 tokens take two blocks
    assert first.kv_cache_bytes == 6 * first.block_bytes
    assert first.total_bytes == (first.weight_bytes + first.kv_cache_bytes + first.activation_bytes)
    assert first.traffic.all_reduces == 3 and first.traffic.all_reduce_bytes == 3 * 8 * 2
    assert first.traffic.gather_bytes == 6 * 2 and first.traffic.send_bytes == 0
    assert first.traffic.collectives == 4


def test_traffic_of_a_pipeline() -> None:
    first, middle, last = plan_of(tiny_config(), 1, 3).ranks
    for rank in (first, middle):
        assert rank.traffic.collectives == 1 and rank.traffic.total_bytes == 32 * 4
    assert last.traffic.collectives == 0 and last.traffic.total_bytes == 0


def test_num_blocks_that_were_asked_for_are_planned() -> None:
    engine = EngineConfig(max_seq_len=64, num_blocks=7)
    (rank,) = plan_of(tiny_config(), 1, 1, engine=engine).ranks
    assert rank.kv_cache_bytes == 7 * rank.block_bytes


@pytest.mark.parametrize("window", [100, (100, 20)])
def test_with_windows_nothing_grows_with_the_length(window: int | tuple[int, int]) -> None:
    def rank_of(max_seq_len: int, window: int | tuple[int | None, ...] | None) -> RankFootprint:
        engine = EngineConfig(max_seq_len=max_seq_len, max_num_batched_tokens=64)
        return plan_of(tiny_config(sliding_window=window), 1, 1, engine=engine).ranks[0]

    short, long = rank_of(1000, window), rank_of(8000, window)
    assert long.num_blocks == short.num_blocks == 32 * 7
    assert long.activation_bytes == short.activation_bytes
    assert rank_of(1000, None).activation_bytes > 2 * short.activation_bytes
    assert rank_of(1000, (100, None)).num_blocks == 32 * 63


@pytest.mark.parametrize(("n_kv_heads", "n_repeated"), [(8, 0), (2, 2 * 1000 * 32)])
def test_cuda_repeats_keys_and_values_of_a_group(n_kv_heads: int, n_repeated: int) -> None:
    model = tiny_config(n_kv_heads=n_kv_heads, ffn_dim=8, vocab_size=8)
    config = EngineConfig(max_seq_len=1000, max_batch_size=1, max_num_batched_tokens=64)
    on_cpu, on_cuda = (
        footprint(Workload(model, config, torch.bfloat16, device), ParallelLayout(1)).ranks[0]
        for device in ("cpu", "cuda")
    )
    assert on_cuda.activation_bytes - on_cpu.activation_bytes == 2 * n_repeated


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UsageError, match="tp_size 9 exceeds n_heads 8"):
        plan_of(tiny_config(), 9, 1)
    with pytest.raises(UsageError, match="pp_size 4 exceeds n_layers 3"):
        plan_of(tiny_config(), 1, 4)


def test_an_architecture_without_a_model_is_named() -> None:
    with pytest.raises(
        UnknownNameError, match=r"architecture mamba has no model.*known models: .*llama"
    ):
        plan_of(tiny_config(architecture="mamba"), 1, 1)


def test_prompt_logprobs_take_one_tile_of_logits() -> None:
    """Of the rank's words; where the rest of a step takes more, they take nothing."""
    model = tiny_config(vocab_size=20000)
    engine = EngineConfig(max_seq_len=1000, max_batch_size=1, max_num_batched_tokens=256)
    tile = ROWS_AT_ONCE * 20000 * 4
    for tp_size in (1, 2):
        for rank in plan_of(model, tp_size, 1, engine=engine).ranks:
            peak = rank.activation_bytes + rank.prompt_logprobs_bytes
            assert tile / tp_size < peak < 1.05 * tile / tp_size
    first, last = plan_of(model, 1, 2, engine=engine).ranks
    assert first.prompt_logprobs_bytes == 0 < last.prompt_logprobs_bytes
    longer = replace(engine, max_seq_len=8000, max_num_batched_tokens=2000)
    assert plan_of(model, 1, 1, engine=longer).ranks[0].prompt_logprobs_bytes == 0


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_files", [1, 2])
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS[:5])
def test_a_host_reads_every_tensor_once(tmp_path: Path, tp: int, pp: int, n_files: int) -> None:
    model = tiny_config()
    reader = open_checkpoint(
        write_meta(tmp_path, model, random_model(model), n_files=n_files, dtype=torch.bfloat16)
    )
    work = Workload(model, ENGINE, torch.float32)
    reads = read_bytes(reader, work, ParallelLayout(tp, pp))
    stored = sum(tensor.nbytes for tensor in reader.tensors.values())
    assert len(reads) == tp * pp
    assert abs(sum(reads) - stored) <= tp * pp
    assert max(reads) < 2 * stored / (tp * pp)
    reader.close()


def read_job(context: ParallelContext, folder: str) -> int:
    reader = open_checkpoint(folder)
    _, report = load_stage(reader, config=ENGINE, context=context, dtype=torch.float32)
    reader.close()
    return report.bytes_read


@pytest.mark.parametrize(("tp", "pp"), [(3, 1), (2, 2)])
def test_the_loader_reads_as_much_as_planned(tmp_path: Path, tp: int, pp: int) -> None:
    """All of a host's ranks together; who of them reads what all need is up to the loader."""
    model = tiny_config(dim=64, ffn_dim=384)
    folder = str(write_meta(tmp_path, model, random_model(model), n_files=2))
    reader = open_checkpoint(folder)
    planned = read_bytes(reader, Workload(model, ENGINE, torch.float32), ParallelLayout(tp, pp))
    reader.close()
    read = run_layout(read_job, folder, tp=tp, pp=pp)
    assert sum(read) == pytest.approx(sum(planned), rel=0.01)


# As measured ------------------------------------------------------------------------------------

BIG = tiny_config(
    dim=768, n_layers=5, n_heads=10, n_kv_heads=5, head_dim=64, ffn_dim=2048, vocab_size=6001
)
BIG_GPT2 = tiny_gpt2_config(
    dim=768, n_heads=12, n_kv_heads=12, head_dim=64, ffn_dim=3072, vocab_size=6001,
    max_positions=768,
)  # fmt: skip
FULL_BATCH = EngineConfig(max_seq_len=768, max_batch_size=8, max_num_batched_tokens=256)
"""Cache and activations of each rank take more than the 16 MiB through which the loader reads."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of BIG, some 150 MiB, of the same with a tied head and with a window, of a
    GPT-2, and a small one.
    """
    small, tied = tiny_config(), replace(BIG, tied_embeddings=True)
    windowed = replace(BIG, sliding_window=256)
    folder = tmp_path_factory.mktemp("footprint")
    weights = random_model(BIG)
    return {
        "big": str(write_meta(folder / "big", BIG, weights)),
        "tied": str(write_hf(folder / "tied", tied, weights)),
        "windowed": str(write_mistral(folder / "windowed", windowed, weights)),
        "gpt2": str(write_hf(folder / "gpt2", BIG_GPT2, random_gpt2(BIG_GPT2))),
        "small": str(write_meta(folder / "small", small, random_model(small))),
    }


def measured_job(context: ParallelContext, folder: str, small: str) -> dict[str, int]:
    """Load and run a full batch: the bytes that this rank then holds, and the most it ever took."""
    memory_use.give_freed_memory_back()
    memory_use.warm_up_matmul(256, [(4096, 768), (6001, 768), (768, 2048)])
    run_batch(make_engine(context, small, max_seq_len=64), n_prompts=8, n_prompt=40, n_new=20)
    memory_use.reset_peak()
    before = memory_use.resident_bytes()
    engine = make_engine(context, folder, **asdict(FULL_BATCH))
    run_batch(engine, n_prompts=8, n_prompt=732, n_new=36)
    tensors = [*engine.stage.parameters(), *engine.stage.buffers()]
    return {
        "weight_bytes": sum(tensor.nbytes for tensor in tensors),
        "kv_cache_bytes": engine.cache.nbytes,
        "grown_bytes": memory_use.peak_resident_bytes() - before,
    }


def run_batch(engine: Engine, *, n_prompts: int, n_prompt: int, n_new: int) -> None:
    """All at once, sampled; BIG's prompts are so long that its cache is full at the end."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 64, (n_prompts, n_prompt), generator=generator).tolist()
    params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=n_new, ignore_eos=True)
    engine.generate(prompts, [params] * n_prompts)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "tp", "pp"),
    [
        pytest.param("big", 1, 1, marks=pytest.mark.nightly),
        pytest.param("big", 2, 1, marks=pytest.mark.nightly),
        pytest.param("big", 1, 2, marks=pytest.mark.nightly),
        pytest.param("big", 2, 2, marks=pytest.mark.nightly),
        pytest.param("big", 3, 1, marks=pytest.mark.nightly),
        pytest.param("tied", 1, 1, marks=pytest.mark.nightly),
        ("tied", 1, 2),
        pytest.param("windowed", 1, 1, marks=pytest.mark.nightly),
        pytest.param("gpt2", 1, 1, marks=pytest.mark.nightly),
        pytest.param("gpt2", 2, 1, marks=pytest.mark.nightly),
        pytest.param("gpt2", 1, 2, marks=pytest.mark.nightly),
    ],
)
def test_the_plan_is_what_a_rank_takes(
    folders: dict[str, str], name: str, tp: int, pp: int
) -> None:
    """Parameters, tables and cache to the byte; all of it within 5 % of what the kernel counts."""
    reader = open_checkpoint(folders[name])
    planned = plan_of(reader.config, tp, pp, engine=FULL_BATCH)
    reader.close()
    ranks = run_layout(measured_job, folders[name], folders["small"], tp=tp, pp=pp, deadline_s=120)
    for rank, found in zip(planned.ranks, ranks, strict=True):
        assert rank.weight_bytes == found["weight_bytes"]
        assert rank.kv_cache_bytes == found["kv_cache_bytes"]
        assert found["grown_bytes"] == pytest.approx(rank.total_bytes, rel=0.05)
