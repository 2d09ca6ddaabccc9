"""From a folder to an engine: what is found out, what must fit together, and who must agree."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.config import ParallelConfig
from llama.engine.build import build_engine
from llama.engine.decide import resolve_dtype
from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.engine.source import ModelSource, check_vocabulary
from llama.errors import CheckpointError, HardwareError, RankMismatchError, UsageError
from llama.parallel.context import ParallelContext, single
from llama.tokenizer import Tokenizer
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.llms import CONFIG, write_model
from tests.helpers.ranks import run_layout

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("build") / "ckpt")


def build(ckpt_dir: str, *, parallel: ParallelConfig | None = None, **options: Any) -> Engine:
    sizes = {"max_seq_len": options.pop("max_seq_len", 32), "max_batch_size": 2}
    wish = parallel or ParallelConfig()
    source = ModelSource(ckpt_dir, options.pop("tokenizer_path", None))
    return build_engine(source, engine_options=sizes, parallel=wish, **options)[0]


# One process ------------------------------------------------------------------------------------


def test_why_attention_is_as_it_is(ckpt_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "llama"):
        make_engine(single(), ckpt_dir)
        make_engine(single(), ckpt_dir, attention="naive")
    first, second = [line for line in caplog.messages if "attention" in line]
    assert first.startswith("attention: sdpa (native kernels take ")  # for the heads are too small
    assert second == "attention: naive (as asked)"
    with pytest.raises(HardwareError, match="not cpu; use auto or sdpa"):
        make_engine(single(), ckpt_dir, attention="flash")


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (None, CPU, torch.float32),
        (None, CUDA, torch.bfloat16),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CUDA, torch.float16),
        ("torch.float32", CUDA, torch.float32),
        (torch.float16, CPU, torch.float16),
    ],
)
def test_the_compute_dtype(
    dtype: str | torch.dtype | None, device: torch.device, expected: torch.dtype
) -> None:
    assert resolve_dtype(dtype, device=device, checkpoint=torch.bfloat16) == expected


@pytest.mark.parametrize("dtype", ["int8", "float", torch.float64, ""])
def test_an_unknown_dtype_lists_the_known_ones(dtype: Any) -> None:
    with pytest.raises(UsageError, match="known: bfloat16, float16, float32"):
        resolve_dtype(dtype, device=CPU, checkpoint=torch.bfloat16)


def test_the_checkpoint_dtype_is_that_of_its_matrices(tmp_path: Path) -> None:
    config = tiny_config()
    write_meta(tmp_path, config, random_model(config), dtype=torch.bfloat16)
    reader = open_checkpoint(tmp_path)
    assert reader.dtype == torch.bfloat16
    reader.close()


def test_weights_and_cache_have_the_compute_dtype(ckpt_dir: str) -> None:
    for name, dtype in {"bfloat16": torch.bfloat16, None: torch.float32}.items():
        engine = build(ckpt_dir, dtype=name)
        assert {p.dtype for p in engine.stage.parameters()} == {dtype}
        assert {half.dtype for half in engine.cache.layer(0)} == {dtype}
        (result,) = engine.generate([[1, 5]], [SamplingParams(max_tokens=3, ignore_eos=True)])
        assert len(result.token_ids) == 3


def test_the_tokenizer_must_have_the_vocabulary_of_the_weights(ckpt_dir: str) -> None:
    path = f"{ckpt_dir}/tokenizer.model"
    tokenizer = Tokenizer(path)
    check_vocabulary(CONFIG, tokenizer, format="meta", ckpt_dir=ckpt_dir)
    for format, vocab_size in (("meta", 401), ("hf", 399), ("megatron", 400 + 1025)):
        other = tiny_config(vocab_size=vocab_size)
        with pytest.raises(CheckpointError) as caught:
            check_vocabulary(other, tokenizer, format=format, ckpt_dir=ckpt_dir)
        for part in ("has 400 tokens", f"vocabulary of {vocab_size}", path, ckpt_dir):
            assert part in str(caught.value)


def test_a_vocabulary_may_be_padded_but_not_in_metas_format(ckpt_dir: str) -> None:
    tokenizer = Tokenizer(f"{ckpt_dir}/tokenizer.model")
    for format in ("hf", "mistral", "megatron", "dcp"):
        for vocab_size in (400, 448, 400 + 1024):
            config = tiny_config(vocab_size=vocab_size)
            check_vocabulary(config, tokenizer, format=format, ckpt_dir=ckpt_dir)


# Several ranks ----------------------------------------------------------------------------------


def differing_job(context: ParallelContext, ckpt_dir: str, what: str) -> None:
    """Rank 1 asks for something else."""
    odd = {"max_seq_len": 48, "dtype": "bfloat16", "seed": 5}
    asked = {what: odd[what]} if context.rank == 1 and what in odd else {}
    if context.rank == 1 and what == "rope_theta":
        ckpt_dir = str(shutil.copytree(ckpt_dir, f"{ckpt_dir}-odd"))
        params = Path(ckpt_dir) / "params.json"
        params.write_text(params.read_text().replace("10000.0", "20000.0"))
    build(ckpt_dir, parallel=ParallelConfig(tp_size=2), **asked)


CLAUSES = {
    "max_seq_len": r"\bengine.max_seq_len: 32 on rank 0\W+48 on rank 1\b",
    "dtype": r"\bdtype: .*float32\W+on rank 0\W+.*bfloat16\W+on rank 1\b",
    "seed": r"\bseed: 0 on rank 0\W+5 on rank 1\b",
    "rope_theta": r"\bmodel.rope_theta: 10000.0 on rank 0\W+20000.0 on rank 1\b",
}


@pytest.mark.parametrize("what", CLAUSES)
def test_ranks_that_ask_for_different_things_are_named(
    tmp_path: Path, ckpt_dir: str, what: str
) -> None:
    copy = str(shutil.copytree(ckpt_dir, tmp_path / "ckpt"))
    for error in run_layout(differing_job, copy, what, tp=2, expect_error=True):
        assert isinstance(error, RankMismatchError)
        assert re.search(CLAUSES[what], str(error))
        assert str(error).count(" on rank 1") == 1


def half_missing_job(context: ParallelContext, ckpt_dir: str) -> None:
    folder = f"{ckpt_dir}-elsewhere" if context.rank else ckpt_dir
    build(folder, parallel=ParallelConfig(pp_size=2), tokenizer_path=f"{ckpt_dir}/tokenizer.model")


def test_what_one_rank_cannot_open_fails_on_all(ckpt_dir: str) -> None:
    first, second = run_layout(half_missing_job, ckpt_dir, pp=2, expect_error=True)
    assert isinstance(first, CheckpointError) and isinstance(second, CheckpointError)
    assert "rank 1 (" in str(first) and "failed while opening the checkpoint" in str(first)
    assert "-elsewhere" in str(first) and "-elsewhere" in str(second)
