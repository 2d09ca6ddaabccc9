"""Angles that depend on a sequence's length, through the engine: how steps cut it is no matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama.config import RopeScaling
from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.parallel.context import single
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.engines import make_engine
from tests.helpers.hf_files import write_hf

CONTEXT = 16
SCALING = RopeScaling(factor=4.0, original_context=CONTEXT, kind="dynamic")
CONFIG = tiny_config(rope_style="half", rope_scaling=SCALING, max_positions=CONTEXT)
# They begin within the original context and beyond it; every answer goes beyond.
PROMPTS = [[(7 * i + 3 * j) % 61 for j in range(n)] for i, n in enumerate((5, 25, 14, 40))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dynamic")
    return write_hf(path, CONFIG, random_model(CONFIG), is_half=True)


def texts_of(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [tuple(out.token_ids) for out in engine.generate(prompts, [GREEDY] * len(prompts))]


def test_chunks_company_and_preemption_change_no_answer(folder: Path) -> None:
    whole = make_engine(single(), folder)
    alone = [texts_of(whole, [prompt])[0] for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    # 21 blocks of 4 tokens: not even two of the sequences fit to their ends.
    tight = make_engine(single(), folder, max_num_batched_tokens=6, num_blocks=21, max_seq_len=80)
    assert texts_of(tight, PROMPTS) == alone


def test_forward_of_rows_takes_what_it_brings_up_to_for_the_prompt(folder: Path) -> None:
    """Like a forward of transformers with a cache: a later call leaves earlier keys as they are."""
    engine = make_engine(single(), folder)
    prompt = PROMPTS[1]
    (answer,) = texts_of(engine, [prompt])
    text = torch.tensor([[*prompt, *answer]])
    logits = engine.forward_rows(text[:, : len(prompt)], 0)
    for position, token_id in enumerate(answer, start=len(prompt)):
        assert int(logits[0, -1].argmax()) == token_id
        logits = engine.forward_rows(text[:, position : position + 1], position)
    whole = engine.forward_rows(text, 0)[:, -1:]
    assert (whole - logits).abs().max() > 1e-3  # the prompt's keys were turned for a shorter text
