"""What `LLM.generate` gives, on one process and alike on every rank of every layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.errors import RankMismatchError
from llama.llm import LLM
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model
from tests.helpers.llms import (
    CONFIG,
    GREEDY,
    N_TOKENS,
    PROMPTS,
    SEEDED,
    assert_clean,
    build,
    facts,
    joined,
    leave_early,
    stopping,
    write_model,
)
from tests.helpers.ranks import RankInfo, run_ranks

UNSEEDED = replace(SEEDED, seed=None)
SCORED = replace(UNSEEDED, temperature=0.7, max_tokens=6, logprobs=3, prompt_logprobs=True)
NIGHTLY = pytest.mark.nightly
LAYOUTS = [
    pytest.param(2, 1, 1, marks=NIGHTLY),
    pytest.param(1, 2, 1, marks=NIGHTLY),
    (2, 2, 1),
    pytest.param(1, 1, 2, marks=NIGHTLY),
    (1, 2, 2),
]


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def llm(ckpt_dir: str) -> LLM:
    return build(ckpt_dir)


# One process ------------------------------------------------------------------------------------


def test_texts_and_ids_in_every_form(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.request_id for output in outputs] == list(range(5))
    assert [output.prompt for output in outputs] == ["the meaning", None, "Paris", None, PROMPTS[4]]
    encoded = [llm.tokenizer.encode(p, True, False) if isinstance(p, str) else p for p in PROMPTS]
    assert [list(output.prompt_token_ids) for output in outputs] == encoded
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        (alone,) = llm.generate(prompt, GREEDY)
        assert facts([replace(alone, request_id=output.request_id)]) == facts([output])
    assert facts(llm.generate(tuple(encoded), [GREEDY] * 5)) == facts(outputs)
    assert llm.generate([], GREEDY) == [] == list(llm.stream([]))


def test_greedy_text_is_the_oracles(llm: LLM, weights: Mapping[str, Tensor]) -> None:
    for output in llm.generate(PROMPTS, GREEDY):
        ids = oracle.greedy(CONFIG, weights, list(output.prompt_token_ids), N_TOKENS)
        assert list(output.token_ids) == ids
        assert output.text == llm.tokenizer.decode(ids)
        assert (output.finish_reason, output.finished) == ("length", True)
        assert output.logprobs is None and output.prompt_logprobs is None


def test_a_stop_string_across_tokens_cuts_the_text(llm: LLM) -> None:
    whole = llm.generate(PROMPTS, GREEDY)
    params, n_tokens = stopping(llm)
    outputs = llm.generate(PROMPTS, params)
    for full, output, param, n in zip(whole, outputs, params, n_tokens, strict=True):
        assert output.text == full.text[: full.text.index(param.stop[0])]
        assert output.token_ids == full.token_ids[:n]
        assert output.finish_reason == "stop"


def test_the_last_allowed_token_may_complete_a_stop_string(llm: LLM) -> None:
    params, n_tokens = stopping(llm)
    expected = facts(llm.generate(PROMPTS, params))
    last = [replace(p, max_tokens=n) for p, n in zip(params, n_tokens, strict=True)]
    assert facts(llm.generate(PROMPTS, last)) == expected
    streamed = [output for output in llm.stream(PROMPTS, last) if output.finished]
    assert {output.finish_reason for output in streamed} == {"stop"}
    too_short = [replace(p, max_tokens=n - 1) for p, n in zip(params, n_tokens, strict=True)]
    assert {output.finish_reason for output in llm.generate(PROMPTS, too_short)} == {"length"}


def test_stop_tokens_and_ignore_eos(llm: LLM) -> None:
    (full,) = llm.generate([1, 5], GREEDY)
    stop = next(t for i, t in enumerate(full.token_ids) if i > 2 and t not in full.token_ids[:i])
    n_before = full.token_ids.index(stop)
    (output,) = llm.generate([1, 5], replace(GREEDY, stop_token_ids=(stop,), logprobs=0))
    assert (output.token_ids, output.finish_reason) == (full.token_ids[:n_before], "stop")
    assert [item.token_id for item in output.logprobs or ()] == list(output.token_ids)
    llm.engine.eos_token_ids, usual = frozenset({stop}), llm.engine.eos_token_ids
    try:
        (ended,) = llm.generate([1, 5], replace(GREEDY, ignore_eos=False))
        (ignored,) = llm.generate([1, 5], GREEDY)
    finally:
        llm.engine.eos_token_ids = usual
    assert usual == {llm.tokenizer.eos_id}
    assert facts([ended]) == facts([output]) and facts([ignored]) == facts([full])


def test_logprobs_are_those_of_the_plain_model(llm: LLM, weights: Mapping[str, Tensor]) -> None:
    for output in llm.generate(PROMPTS, SCORED):
        ids = [*output.prompt_token_ids, *output.token_ids]
        expected = oracle.logits(CONFIG, weights, ids).log_softmax(-1)
        assert output.logprobs is not None and output.prompt_logprobs is not None
        assert len(output.logprobs) == len(output.token_ids)
        first, *scores = output.prompt_logprobs
        scores += [item.logprob for item in output.logprobs]
        assert first is None
        assert scores == pytest.approx(
            [float(expected[at, token]) for at, token in enumerate(ids[1:])], abs=1e-3
        )
        for at, item in enumerate(output.logprobs, len(output.prompt_token_ids)):
            assert item.token_id == ids[at]
            best = expected[at - 1].topk(3)
            assert [token for token, _ in item.top] == best.indices.tolist()
            assert [v for _, v in item.top] == pytest.approx(best.values.tolist(), abs=1e-3)


def test_seeds(llm: LLM, ckpt_dir: str) -> None:
    together = llm.generate([[1, 5]] * 3, [SEEDED, replace(SEEDED, seed=8), SEEDED])
    assert together[0].token_ids == together[2].token_ids != together[1].token_ids
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, SEEDED), strict=True):
        (alone,) = llm.generate(prompt, SEEDED)
        assert alone.token_ids == output.token_ids
    first, second, other = build(ckpt_dir), build(ckpt_dir), build(ckpt_dir, seed=1)
    calls = [[o.token_ids for o in first.generate([[1, 5]] * 4, UNSEEDED)] for _ in range(2)]
    assert len({*calls[0], *calls[1]}) == 8
    assert [
        [o.token_ids for o in second.generate([[1, 5]] * 4, UNSEEDED)] for _ in range(2)
    ] == calls
    assert not {*calls[0]} & {o.token_ids for o in other.generate([[1, 5]] * 4, UNSEEDED)}


# Every layout -----------------------------------------------------------------------------------


def scenes(llm: LLM) -> dict[str, Any]:
    params, _ = stopping(llm)
    found: dict[str, Any] = {
        "greedy": facts(llm.generate(PROMPTS, GREEDY)),
        "stop": facts(llm.generate(PROMPTS, params)),
        "seeded": facts(llm.generate(PROMPTS, SEEDED)),
        "unseeded": facts(llm.generate([[1, 5]] * 3, UNSEEDED)),
        "one": facts(llm.generate("Paris", GREEDY)),
        "none": facts(llm.generate([], GREEDY)),
    }
    scored = llm.generate(PROMPTS, SCORED)
    found["scored"] = facts(scored)
    found["logprobs"] = [
        value
        for output in scored
        for value in [
            *(output.prompt_logprobs or ())[1:],
            *(i.logprob for i in output.logprobs or ()),
        ]
    ]
    found["streamed"] = joined(list(llm.stream(PROMPTS, params)))
    return found


@pytest.fixture(scope="module")
def one_process(ckpt_dir: str) -> dict[str, Any]:
    return scenes(build(ckpt_dir))


def layout_job(info: RankInfo, ckpt_dir: str, tp: int, pp: int) -> dict[str, Any]:
    """`scenes`, then streams that are left early, then calls that differ between ranks."""
    info.init_process_group()
    llm = build(ckpt_dir, tp=tp, pp=pp)
    found = scenes(llm)
    unopened = llm.stream(PROMPTS, GREEDY)
    if llm.context.is_leader:
        unopened.close()
    else:
        assert list(unopened) == []
    for how in ("break", "raise"):
        found[how] = leave_early(llm, how=how)
        assert facts(llm.generate(PROMPTS, GREEDY)) == found["greedy"]
    assert_clean(llm)
    for prompts in (["x"] * (1 + info.rank), "x" if info.rank else 7):
        with pytest.raises(RankMismatchError, match="prompts"):
            llm.generate(prompts)  # type: ignore[arg-type]
    for rows in ([[1, 2 + info.rank]], [[1] * (1 + info.rank)]):
        with pytest.raises(RankMismatchError, match="tokens"):
            llm.engine.forward_rows(torch.tensor(rows), 0)
    found["leads"] = llm.context.is_leader
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp", "dp"), LAYOUTS)
def test_every_rank_of_every_layout_gets_the_same(
    ckpt_dir: str, one_process: dict[str, Any], tp: int, pp: int, dp: int
) -> None:
    ranks = run_ranks(layout_job, tp * pp * dp, ckpt_dir, tp, pp)
    texts: dict[int, str] = {}
    for found in ranks:
        for name, expected in one_process.items():
            if name == "logprobs":
                assert found[name] == pytest.approx(expected, abs=1e-3)
            elif name != "streamed":
                assert found[name] == expected, name
        left = 4 if found["leads"] else 0
        assert (found["break"], found["raise"]) == (left, left)
        assert bool(found["streamed"]) == found["leads"]
        assert not set(texts) & set(found["streamed"])
        texts |= found["streamed"]
    assert texts == one_process["streamed"]
    assert sum(found["leads"] for found in ranks) == dp
