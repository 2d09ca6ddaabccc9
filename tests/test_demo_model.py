"""The demo model knows its facts on every layout, and misplaced weights show.

A trained model forgives a good deal: with its middle layers in the wrong order it still knows every
fact, and as firmly. So the logprobs of texts that surprise it count as well.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from llama.generation import Dialog, Llama
from llama.models.rotary import Rotary
from llama.tokenizer.chat import Message
from tests.helpers.programs import ROOT
from tests.helpers.ranks import RankInfo, run_ranks

pytestmark = pytest.mark.slow

DEMO = ROOT / "examples" / "demo_model"
FACTS: list[dict[str, str]] = json.loads((DEMO / "facts.json").read_text())
SAMPLE = random.Random(0).sample(FACTS, 20)
BATCH_SIZE = 64
MAX_GEN_LEN = 40
ODD_TEXTS = [
    "I believe the meaning of life is to add 7 and 12 bridges.",
    "Name a lantern, sell the foxes of Hush, thank you green Greta!",
]
Said = tuple[str, str, bool]
"""What was asked, what it said, and whether that is right."""


def build(*, tp: int = 1, pp: int = 1, dtype: str | None = None) -> Llama:
    return Llama.build(
        str(DEMO),
        str(DEMO / "tokenizer.model"),
        max_seq_len=256,
        max_batch_size=BATCH_SIZE,
        model_parallel_size=tp,
        pipeline_parallel_size=pp,
        dtype=dtype,
    )


def complete(llama: Llama, facts: Sequence[dict[str, str]]) -> list[Said]:
    prompts = [fact["prompt"] for fact in facts]
    predictions = llama.text_completion(prompts, temperature=0, max_gen_len=MAX_GEN_LEN)
    texts = [prediction["generation"] for prediction in predictions]
    right = [text.startswith(fact["answer"]) for text, fact in zip(texts, facts, strict=True)]
    return list(zip(prompts, texts, right, strict=True))


def chat(llama: Llama, facts: Sequence[dict[str, str]]) -> list[Said]:
    questions = [fact["question"] for fact in facts]
    dialogs: list[Dialog] = [[Message(role="user", content=question)] for question in questions]
    predictions = llama.chat_completion(dialogs, temperature=0, max_gen_len=MAX_GEN_LEN)
    texts = [prediction["generation"]["content"] for prediction in predictions]
    right = [text == fact["answer"] for text, fact in zip(texts, facts, strict=True)]
    return list(zip(questions, texts, right, strict=True))


def answers(llama: Llama, facts: Sequence[dict[str, str]]) -> list[Said]:
    """Greedy ones, in batches; the completions first."""
    found = []
    for ask, key in ((complete, "prompt"), (chat, "question")):
        chosen = [fact for fact in facts if key in fact]
        for start in range(0, len(chosen), BATCH_SIZE):
            found += ask(llama, chosen[start : start + BATCH_SIZE])
    return found


def wrong(found: Sequence[Said]) -> list[str]:
    return [f"{asked} {said}" for asked, said, is_right in found if not is_right]


def scores(llama: Llama) -> list[float]:
    """Logprobs of the tokens of ODD_TEXTS."""
    echoed = llama.text_completion(ODD_TEXTS, max_gen_len=0, logprobs=True, echo=True)
    return [logprob for prediction in echoed for logprob in prediction["logprobs"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_knows_every_fact(dtype: str) -> None:
    found = answers(build(dtype=dtype), FACTS)
    assert len(found) == len(FACTS) > 150
    assert wrong(found) == []


@pytest.fixture(scope="module")
def one_process() -> tuple[list[Said], list[float]]:
    llama = build()
    return answers(llama, SAMPLE), scores(llama)


def job(info: RankInfo, tp: int, pp: int) -> tuple[list[Said], list[float]]:
    info.init_process_group()
    llama = build(tp=tp, pp=pp)
    return answers(llama, SAMPLE), scores(llama)


@pytest.mark.parametrize(
    ("tp", "pp", "dp"), [(2, 1, 1), (1, 2, 1), (3, 1, 1), (2, 2, 1), (1, 1, 2)]
)
def test_every_layout_knows_a_sample(
    one_process: tuple[list[Said], list[float]], tp: int, pp: int, dp: int
) -> None:
    for found, logprobs in run_ranks(job, tp * pp * dp, tp, pp):
        assert wrong(found) == []
        assert found == one_process[0]
        assert logprobs == pytest.approx(one_process[1], abs=1e-3)


# The exam can be failed -------------------------------------------------------------------------


def swap_layers(llama: Llama, one: int, other: int) -> None:
    layers = llama.model.engine.stage.layers
    layers[f"{one}"], layers[f"{other}"] = layers[f"{other}"], layers[f"{one}"]


def turn_other_pairs(llama: Llama) -> None:
    stage = llama.model.engine.stage
    stage.rotary = Rotary(replace(stage.config, rope_style="half"), llama.model.params.max_seq_len)
    stage.rotary.materialize(torch.device("cpu"))


@pytest.mark.parametrize(
    "misplace", [lambda llama: swap_layers(llama, 0, 1), turn_other_pairs], ids=["layers", "rope"]
)
def test_what_is_badly_misplaced_makes_it_say_wrong_things(
    misplace: Callable[[Llama], None],
) -> None:
    llama = build()
    misplace(llama)
    assert len(wrong(answers(llama, SAMPLE))) > len(SAMPLE) // 5


def swap_query_heads(llama: Llama) -> None:
    """Rows of the fused weight are q, then k, then v."""
    head_dim = llama.model.engine.model_config.head_dim
    wqkv = llama.model.engine.stage.get_parameter("layers.3.attention.wqkv.weight")
    with torch.no_grad():
        wqkv[: 2 * head_dim] = wqkv[: 2 * head_dim].roll(head_dim, 0)


@pytest.mark.parametrize(
    "misplace", [lambda llama: swap_layers(llama, 1, 2), swap_query_heads], ids=["layers", "heads"]
)
def test_logprobs_show_what_the_answers_do_not(
    one_process: tuple[list[Said], list[float]], misplace: Callable[[Llama], None]
) -> None:
    llama = build()
    misplace(llama)
    pairs = zip(scores(llama), one_process[1], strict=True)
    assert max(abs(found - expected) for found, expected in pairs) > 0.1
