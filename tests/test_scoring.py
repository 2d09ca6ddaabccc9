"""Scores are those of the plain model, and generating finds the same ones, on every layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from llama import LLM, ScoreOutput
from llama.config import ModelConfig
from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.errors import LlamaError, RankMismatchError, UsageError
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.llms import CONFIG, build, write_model
from tests.helpers.ranks import RankInfo, run_layout, run_ranks

UNEVEN = tiny_config(n_kv_heads=2, vocab_size=101)
LAYOUTS = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
PROMPTS = [[(7 * at + 3 * n) % 101 for at in range(n)] for n in (2, 21, 5, 1, 13)]
SCORING = SamplingParams(max_tokens=0, prompt_logprobs=True)
GENERATING = [
    SamplingParams(temperature=0.0, max_tokens=9, logprobs=0),
    SamplingParams(temperature=0.8, seed=5, max_tokens=9, logprobs=0),
]
TEXTS: list[Any] = ["the meaning of the fox", [1, 60, 8, 8, 23, 99, 3], "Paris"]


@dataclass(frozen=True)
class Found:
    """Logprobs of PROMPTS by how they were scored; and of completions, generated and scored."""

    prompts: dict[str, list[list[float]]]
    completions: list[tuple[list[float], list[float]]]


def scores(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Without the None of each first token."""
    logprobs = []
    for result in engine.generate(prompts, [SCORING] * len(prompts)):
        assert (result.token_ids, result.finish_reason) == ((), "length")
        assert result.prompt_logprobs is not None and result.prompt_logprobs[0] is None
        logprobs.append([value for value in result.prompt_logprobs if value is not None])
    return logprobs


def job(context: ParallelContext, ckpt_dir: str) -> Found:
    whole = make_engine(context, ckpt_dir)
    chunked = make_engine(context, ckpt_dir, max_num_batched_tokens=5, num_blocks=32)
    prompts = {
        "together": scores(whole, PROMPTS),
        "in chunks": scores(chunked, PROMPTS),
        "alone": [scores(whole, [prompt])[0] for prompt in PROMPTS],
    }
    completions = []
    for params in GENERATING:
        results = chunked.generate(PROMPTS, [params] * len(PROMPTS))
        texts = [[*result.prompt_token_ids, *result.token_ids] for result in results]
        for result, scored in zip(results, scores(whole, texts), strict=True):
            generated = [item.logprob for item in result.logprobs or ()]
            completions.append((generated, scored[len(result.prompt_token_ids) - 1 :]))
    return Found(prompts, completions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_meta(tmp_path_factory.mktemp("uneven"), UNEVEN, random_model(UNEVEN)))


def expected_logprobs(config: ModelConfig, token_ids: Sequence[int]) -> list[float]:
    table = oracle.logits(config, random_model(config), list(token_ids)).log_softmax(-1)
    return [float(table[at, token_id]) for at, token_id in enumerate(token_ids[1:])]


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_scores_are_the_oracles_and_what_generating_finds(folder: str, tp: int, pp: int) -> None:
    """Of other families tests/test_parity.py says so."""
    expected = [expected_logprobs(UNEVEN, prompt) for prompt in PROMPTS]
    for found in run_layout(job, folder, tp=tp, pp=pp):
        for how, logprobs in found.prompts.items():
            for got, want in zip(logprobs, expected, strict=True):
                assert got == pytest.approx(want, abs=1e-4), how
                assert sum(got) == pytest.approx(sum(want), abs=1e-5 * len(want)), how
        for generated, scored in found.completions:
            assert len(generated) == 9
            assert generated == pytest.approx(scored, abs=1e-4)


# LLM.score --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("scoring"))


@pytest.fixture(scope="module")
def llm(ckpt_dir: str) -> LLM:
    return build(ckpt_dir)


def test_score_of_texts_and_ids(llm: LLM) -> None:
    outputs = llm.score(TEXTS)
    encoded = [llm.tokenizer.encode(t, True, False) if isinstance(t, str) else t for t in TEXTS]
    assert [list(output.prompt_token_ids) for output in outputs] == encoded
    for ids, output in zip(encoded, outputs, strict=True):
        want = expected_logprobs(CONFIG, ids)
        assert output.logprobs[0] is None and output.n_scored == len(ids) - 1
        assert output.scored == output.logprobs[1:] == pytest.approx(want, abs=1e-4)
        assert output.loss == pytest.approx(-sum(want) / len(want), abs=1e-5)
        assert output.perplexity == pytest.approx(math.exp(output.loss))
    (alone,) = llm.score(TEXTS[0])
    assert alone.logprobs == pytest.approx(outputs[0].logprobs, abs=1e-4)
    (longest,) = llm.score([5] * 64)
    assert longest.n_scored == 63
    assert llm.score([]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1, 2], [1]], "prompt 1 has 1 tokens, .* give at least 2"),
        ([[]], "prompt 0 has 0 tokens"),
        ([[5] * 65], "prompt 0 has 65 tokens, max_seq_len is 64; .* overlap"),
        ([[1, 400]], "token 1 is 400; ids are integers from 0 to"),
        (7, "prompts must be texts or lists of token ids"),
        (b"ab", "prompts must be texts or lists of token ids"),
        (["ab", b"ab"], "prompt 1 must be a text or a list of token ids"),
    ],
)
def test_what_cannot_be_scored_is_refused(llm: LLM, prompts: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.score(prompts)  # type: ignore[arg-type]


def score_job(info: RankInfo, ckpt_dir: str) -> list[ScoreOutput]:
    info.init_process_group()
    llm = build(ckpt_dir, tp=2, pp=1)
    outputs = llm.score(TEXTS)
    with pytest.raises(RankMismatchError, match="prompts"):
        llm.score([[1, 2 + info.rank]])
    with pytest.raises(RankMismatchError, match="sampling_params"):
        llm.score("Paris") if info.rank else llm.generate("Paris")
    return outputs


def test_every_rank_gets_every_score(llm: LLM, ckpt_dir: str) -> None:
    expected = llm.score(TEXTS)
    for outputs in run_ranks(score_job, 2, ckpt_dir):
        for got, want in zip(outputs, expected, strict=True):
            assert got.prompt_token_ids == want.prompt_token_ids
            assert got.logprobs == pytest.approx(want.logprobs, abs=1e-4)


def test_a_perplexity_beyond_any_float_is_infinite() -> None:
    assert ScoreOutput((1, 2), (None, -800.0)).perplexity == math.inf


def test_logits_that_overflow_name_the_request(ckpt_dir: str) -> None:
    broken = build(ckpt_dir)
    broken.engine.stage.output.weight[7, 3] = math.inf  # type: ignore[union-attr]
    with pytest.raises(LlamaError, match="request 1: non-finite logits after position 0"):
        broken.generate([[1, 5], [1, 6, 9]], [SamplingParams(max_tokens=0), SCORING])
