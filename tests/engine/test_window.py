"""Sliding windows from end to end: however long a sequence, it stays within its ring of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama.config import ModelConfig
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.parallel.context import ParallelContext, single
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.engines import make_engine
from tests.helpers.mistral_files import write_mistral
from tests.helpers.ranks import run_layout

WINDOW, BLOCK_SIZE = 8, 4
RING_BLOCKS = 2
CONFIG = tiny_config(n_kv_heads=2, sliding_window=WINDOW)
PROMPTS = [[1 + (5 * i + 3 * j * j) % 61 for j in range(n)] for i, n in enumerate((32, 3, 45))]
LENGTH = 20 * WINDOW
"""Prompt and output together."""


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory, weights: Mapping[str, Tensor]) -> str:
    return str(write_mistral(tmp_path_factory.mktemp("window") / "ckpt", CONFIG, weights))


def long_job(
    context: ParallelContext, ckpt_dir: str, max_num_batched_tokens: int
) -> tuple[list[list[int]], set[int]]:
    """The greedy ids of PROMPTS, and how many blocks were in use while all ran and were longer than
    a window. Only the leader has something to tell.
    """
    engine = make_engine(
        context,
        ckpt_dir,
        max_seq_len=2 * LENGTH,
        max_batch_size=len(PROMPTS),
        max_num_batched_tokens=max_num_batched_tokens,
    )
    assert engine.cache.num_blocks == len(PROMPTS) * RING_BLOCKS
    params = [
        SamplingParams(temperature=0.0, max_tokens=LENGTH - len(prompt)) for prompt in PROMPTS
    ]
    requests = engine.make_requests(PROMPTS, params)
    in_use = set()
    for _ in engine.stream(requests):
        running = [request for request in requests if request.status == "running"]
        if sum(request.num_computed > WINDOW for request in running) == len(PROMPTS):
            in_use.add(engine.cache.num_blocks - engine.scheduler.num_free_blocks)
    assert engine.scheduler.num_free_blocks == engine.cache.num_blocks
    return [request.output_token_ids for request in requests], in_use


def check_greedy(
    config: ModelConfig, weights: Mapping[str, Tensor], prompt: list[int], output: list[int]
) -> None:
    """Every token of `output` is the reference's choice after all those before it."""
    logits = oracle.logits(config, weights, [*prompt, *output])
    assert output == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("tp", "pp", "max_num_batched_tokens"),
    [(1, 1, 5), (1, 1, 2048), (1, 2, 5), pytest.param(2, 1, 16, marks=pytest.mark.nightly)],
)
def test_twenty_windows_run_in_constant_memory(
    ckpt_dir: str, weights: Mapping[str, Tensor], tp: int, pp: int, max_num_batched_tokens: int
) -> None:
    leader, *_ = run_layout(long_job, ckpt_dir, max_num_batched_tokens, tp=tp, pp=pp)
    outputs, in_use = leader
    assert in_use == {len(PROMPTS) * RING_BLOCKS}
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert len(prompt) + len(output) == LENGTH
        check_greedy(CONFIG, weights, prompt, output)


@pytest.mark.parametrize("windows", [(5, 8, 2), (8, None)])
def test_the_widest_window_decides(tmp_path: Path, windows: tuple[int | None, ...]) -> None:
    """Where one layer sees everything, nothing can be written over."""
    config = replace(CONFIG, sliding_window=windows)
    weights = random_model(config)
    ckpt_dir = write_mistral(tmp_path / "ckpt", config, weights)
    engine = make_engine(single(), ckpt_dir, max_seq_len=64, max_num_batched_tokens=7)
    assert engine.cache.ring_blocks == (64 // BLOCK_SIZE if None in windows else RING_BLOCKS)
    params = SamplingParams(temperature=0.0, max_tokens=20)
    (found,) = engine.generate(PROMPTS[:1], [params])
    check_greedy(config, weights, PROMPTS[0], list(found.token_ids))


@pytest.mark.parametrize("attention", ["naive", "sdpa"])
def test_forward_goes_round_the_ring(
    ckpt_dir: str, weights: Mapping[str, Tensor], attention: str
) -> None:
    """One token a call, some, and more than a window, at any place of the ring."""
    engine = make_engine(single(), ckpt_dir, attention=attention)
    rows = torch.randint(0, CONFIG.vocab_size, (2, 60), generator=torch.Generator().manual_seed(3))
    expected = torch.stack([oracle.logits(CONFIG, weights, row) for row in rows.tolist()])
    at = 0
    for n_new in [3, 1, 1, 1, 7, 1, 1, 19, 1, 8, 5, 11, 1]:
        found = engine.forward_rows(rows[:, at : at + n_new], at)
        torch.testing.assert_close(found, expected[:, at : at + n_new], atol=1e-4, rtol=0)
        at += n_new
    assert at == 60
    again = engine.forward_rows(rows[:, :30], 0)
    torch.testing.assert_close(again, expected[:, :30], atol=1e-4, rtol=0)


def test_forward_goes_back_no_further_than_the_ring(
    tmp_path: Path, weights: Mapping[str, Tensor]
) -> None:
    """A window of 5 in a ring of 8: after 20 tokens those from position 12 on are there."""
    config = replace(CONFIG, sliding_window=5)
    engine = make_engine(single(), write_mistral(tmp_path / "ckpt", config, weights))
    tokens = PROMPTS[0]
    expected = oracle.logits(config, weights, tokens)
    engine.forward_rows(torch.tensor([tokens[:20]] * 2), 0)
    found = engine.forward_rows(torch.tensor([tokens[16:18]] * 2), 16)
    torch.testing.assert_close(found[1], expected[16:18], atol=1e-4, rtol=0)
    for row in (1, 2):
        with pytest.raises(UsageError, match=r"start_pos 15 sees .* from 11 on.* from 12 on"):
            engine.forward_rows(torch.tensor([tokens[15:18]] * row), 15)
    engine.forward_rows(torch.tensor([tokens[:3]]), 0)
    found = engine.forward_rows(torch.tensor([tokens[2:4]]), 2)
    torch.testing.assert_close(found[0], expected[2:4], atol=1e-4, rtol=0)
