"""The engine over real ranks: preemption, replicas, plans in flight, bare forward passes, failure.

What single requests come to on every layout is the matrix's subject (tests/test_matrix.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.engine.engine import Engine
from llama.engine.exchange import FinishedSequence
from llama.engine.sequence import SamplingParams
from llama.engine.stats import RankStats
from llama.errors import LlamaError, PeerLostError, UsageError
from llama.parallel.context import ParallelContext, single
from llama.tokenizer import Tokenizer
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout
from tests.helpers.tokenizers import write_sentencepiece

CONFIG = tiny_config(n_kv_heads=2)
PROMPTS = [[1, *[(5 * i + 3 * j) % 61 for j in range(1 + i % 7)]] for i in range(32)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
SAMPLED = SamplingParams(max_tokens=20, logprobs=2, prompt_logprobs=True)
LAYOUTS = [(2, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory, weights: Mapping[str, Tensor]) -> str:
    return str(write_meta(tmp_path_factory.mktemp("engine") / "ckpt", CONFIG, weights))


@pytest.fixture(scope="module")
def engine(ckpt_dir: str) -> Engine:
    return make_engine(single(), ckpt_dir)


def padded_job(context: ParallelContext, ckpt_dir: str, tokenizer_path: str) -> bool:
    """The rows beyond the tokenizer's are the largest by far; no id of theirs is ever drawn."""
    tokenizer = Tokenizer(tokenizer_path)
    engine = make_engine(context, ckpt_dir, tokenizer=tokenizer)
    for params in (replace(GREEDY, logprobs=3, ignore_eos=True), SAMPLED):
        for result in engine.generate(PROMPTS[:4], [params] * 4):
            assert max(result.token_ids) < tokenizer.n_words
            assert all(score.logprob > -20 for score in result.logprobs or ())
    with pytest.raises(UsageError, match="ids are integers from 0 to 399"):
        engine.generate([[400]], [GREEDY])
    return True


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 1), (1, 2)])
def test_padding_of_the_vocabulary_is_never_drawn(tmp_path: Path, tp: int, pp: int) -> None:
    config = tiny_config(n_kv_heads=2, vocab_size=464)
    weights = random_model(config)
    weights["output.weight"][400:] *= 100
    ckpt_dir = str(write_meta(tmp_path / "ckpt", config, weights))
    tokenizer_path = str(write_sentencepiece(tmp_path / "tokenizer.model"))
    assert all(run_layout(padded_job, ckpt_dir, tokenizer_path, tp=tp, pp=pp))


def ids(finished: list[FinishedSequence]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in finished]


def lost_blocks(engine: Engine) -> int:
    """Blocks that nobody runs with and nobody gave back."""
    return engine.cache.num_blocks - engine.scheduler.num_free_blocks


def n_tokens(engine: Engine) -> int:
    """Tokens that rank 0 has computed so far. Collective."""
    return engine.stats()[0].n_tokens


# Preemption -------------------------------------------------------------------------------------


def preempting_job(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    """The same requests with plenty of blocks, and with the fewest that one of them needs."""
    found = {}
    for name, num_blocks in {"plenty": 64, "few": 8}.items():
        engine = make_engine(context, ckpt_dir, max_seq_len=32, num_blocks=num_blocks)
        greedy = engine.generate(PROMPTS[:6], [GREEDY] * 6)
        sampled = engine.generate(PROMPTS[:6], [SAMPLED] * 6)
        found[name] = {
            "greedy": ids(greedy),
            "sampled": ids(sampled),
            "n_logprobs": [(len(s.logprobs or ()), s.prompt_logprobs or ()) for s in sampled],
            "n_tokens": n_tokens(engine),
            "lost blocks": lost_blocks(engine),
        }
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_with_few_blocks_sequences_are_recomputed_and_nothing_changes(
    ckpt_dir: str, tp: int, pp: int
) -> None:
    alone = preempting_job(single(), ckpt_dir)
    for found in [alone, *run_layout(preempting_job, ckpt_dir, tp=tp, pp=pp)]:
        plenty, few = found["plenty"], found["few"]
        assert few["n_tokens"] > plenty["n_tokens"]
        assert plenty["lost blocks"] == few["lost blocks"] == 0
        for name in ("greedy", "sampled"):
            assert few[name] == plenty[name] == alone["plenty"][name]
        scores = zip(few["n_logprobs"], alone["plenty"]["n_logprobs"], strict=True)
        for (count, prompt), (other_count, other_prompt) in scores:
            assert count == other_count
            assert prompt[0] is None
            assert prompt[1:] == pytest.approx(other_prompt[1:], abs=1e-3)


# Replicas ---------------------------------------------------------------------------------------


def replicated_job(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    engine = make_engine(context, ckpt_dir)
    found = {n: engine.generate(PROMPTS[:n], [SAMPLED] * n) for n in (7, 1, 0)}
    return {
        "ids": {n: ids(results) for n, results in found.items()},
        "prompts": [list(result.prompt_token_ids) for result in found[7]],
        "lost blocks": lost_blocks(engine),
        "stats": engine.stats(),
    }


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
def test_replicas_share_the_prompts_and_every_rank_gets_all(
    ckpt_dir: str, tp: int, pp: int
) -> None:
    alone = replicated_job(single(), ckpt_dir)
    ranks = run_layout(replicated_job, ckpt_dir, tp=tp, pp=pp, dp=2)
    for found in ranks:
        assert found["ids"] == alone["ids"]
        assert found["prompts"] == PROMPTS[:7]
        assert found["lost blocks"] == 0
        work = {stats.n_tokens for stats in found["stats"]}
        assert sum(work) == alone["stats"][0].n_tokens and len(work) == 2


# The pipeline -----------------------------------------------------------------------------------


def busy_job(context: ParallelContext, ckpt_dir: str) -> tuple[list[Any], list[RankStats]]:
    engine = make_engine(context, ckpt_dir, max_batch_size=32)
    before = engine.stats()
    assert all(stats.n_plans == 0 and stats.busy_share == 0 for stats in before)
    return ids(engine.generate(PROMPTS, [GREEDY] * 32)), engine.stats()


def test_both_stages_of_a_pipeline_work_at_once(ckpt_dir: str) -> None:
    outputs, (alone,) = busy_job(single(), ckpt_dir)
    assert alone.most_in_flight == 1
    ranks = run_layout(busy_job, ckpt_dir, pp=2)
    assert [found for found, _ in ranks] == [outputs] * 2
    assert ranks[0][1] == ranks[1][1]
    first, second = ranks[0][1]
    assert (first.rank, first.pp_rank, second.rank, second.pp_rank) == (0, 0, 1, 1)
    assert first.most_in_flight == second.most_in_flight == 2
    assert first.n_plans == second.n_plans >= 2 * GREEDY.max_tokens  # type: ignore[operator]
    assert first.n_tokens == second.n_tokens == alone.n_tokens
    for stats in (first, second):
        assert 0 < stats.busy_s <= stats.wall_s and 0 < stats.busy_share <= 1


# Bare forward passes ----------------------------------------------------------------------------


def forward_job(context: ParallelContext, ckpt_dir: str) -> list[Tensor]:
    """Three calls that continue each other, and a single row that follows a `generate`."""
    engine = make_engine(context, ckpt_dir, max_seq_len=16, max_batch_size=3)
    rows = torch.tensor([PROMPTS[5], PROMPTS[12], PROMPTS[19]])
    parts = [(0, 3), (3, 4), (4, 7)]
    together = [engine.forward_rows(rows[:, start:stop], start) for start, stop in parts]
    engine.generate(PROMPTS[:4], [replace(GREEDY, max_tokens=5)] * 4)
    return [torch.cat(together, dim=1), engine.forward_rows(rows[1:2], 0)]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), *LAYOUTS])
def test_forward_continues_and_rows_are_independent(
    ckpt_dir: str, weights: Mapping[str, Tensor], tp: int, pp: int
) -> None:
    rows = [PROMPTS[5], PROMPTS[12], PROMPTS[19]]
    expected = torch.stack([oracle.logits(CONFIG, weights, row) for row in rows])
    for together, alone in run_layout(forward_job, ckpt_dir, tp=tp, pp=pp):
        assert together.dtype == torch.float32 and together.device.type == "cpu"
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone, expected[1:2], atol=1e-4, rtol=0)


def test_a_generate_in_between_overwrites_the_rows(ckpt_dir: str) -> None:
    engine = make_engine(single(), ckpt_dir, max_seq_len=16, max_batch_size=1)
    row = torch.tensor([PROMPTS[6]])
    engine.forward_rows(row[:, :4], 0)
    undisturbed = engine.forward_rows(row[:, 4:], 4)
    engine.generate([[9] * 8], [GREEDY])
    assert not torch.allclose(engine.forward_rows(row[:, 4:], 4), undisturbed, atol=0.1)


@pytest.mark.parametrize(
    ("rows", "start_pos", "message"),
    [
        ([[1] * 9] * 9, 0, "batch of 9 rows exceeds max_batch_size 8"),
        ([[1] * 9], 120, "positions 120 to 128 are outside max_seq_len 128"),
        ([[1]], -1, "positions -1 to -1 are outside max_seq_len 128"),
        ([[1, 64]], 0, "row 0: token 1 is 64; ids are integers from 0 to 63"),
        ([[1, 2], [3, -1]], 0, "row 1: token 1 is -1"),
        ([[1.5]], 0, "integer token ids, got torch.float32"),
        ([1, 2], 0, r"token ids \(batch, seq\) of at least one token, got \(2,\)"),
        ([[]], 0, r"of at least one token, got \(1, 0\)"),
    ],
)
def test_forward_refuses_what_it_has_no_room_for(
    engine: Engine, rows: Any, start_pos: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        engine.forward_rows(torch.tensor(rows), start_pos)


def test_forward_refuses_gaps_and_what_is_no_tensor(ckpt_dir: str) -> None:
    fresh = make_engine(single(), ckpt_dir)
    with pytest.raises(UsageError, match="start_pos 3 leaves a gap: 0 positions"):
        fresh.forward_rows(torch.tensor([[1]]), 3)
    fresh.forward_rows(torch.tensor([[1, 2], [3, 4]]), 0)
    with pytest.raises(UsageError, match="start_pos 3 leaves a gap: 2 positions"):
        fresh.forward_rows(torch.tensor([[5], [6]]), 3)
    with pytest.raises(UsageError, match=r"a tensor of integer token ids, got \[\[5\]\]"):
        fresh.forward_rows([[5]], 2)  # type: ignore[arg-type]


def test_forward_needs_the_blocks_of_its_rows(ckpt_dir: str) -> None:
    engine = make_engine(single(), ckpt_dir, max_seq_len=16, num_blocks=11)
    assert engine.forward_rows(torch.tensor([[1], [2]]), 0).shape == (2, 1, 64)
    with pytest.raises(UsageError, match="or the 2 rows of max_seq_len that the KV cache holds"):
        engine.forward_rows(torch.tensor([[1], [2], [3]]), 0)


# Failure ----------------------------------------------------------------------------------------


def test_requests_are_checked_before_any_is_made(engine: Engine) -> None:
    seeds = {engine.make_requests([[1]], [GREEDY])[0].seed}
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        engine.make_requests([[1], [2]], [GREEDY, replace(GREEDY, stop=("x",))])
    with pytest.raises(UsageError, match="request 1 has a prompt of 129 tokens"):
        engine.make_requests([[1], [2] * 129], [GREEDY] * 2)
    made = engine.make_requests([[1], [2]], [GREEDY] * 2)
    assert [request.seq_id for request in made] == [0, 1]
    assert len(seeds | {request.seed for request in made}) == 3


def poison(engine: Engine, value: float) -> None:
    norm = engine.stage.norm
    if norm is not None:
        norm.weight.data.fill_(value)  # type: ignore[operator]


def overflowing_job(context: ParallelContext, ckpt_dir: str) -> list[int]:
    """Weights that are no numbers, and good ones again; the answer with those."""
    engine = make_engine(context, ckpt_dir)
    norm = engine.stage.norm
    saved = {} if norm is None else {k: v.clone() for k, v in norm.state_dict().items()}
    poison(engine, float("nan"))
    with pytest.raises(LlamaError, match="request 0: non-finite logits after position 1"):
        engine.generate(PROMPTS[:3], [GREEDY] * 3)
    assert lost_blocks(engine) == 0 and not engine.scheduler.has_unfinished
    if norm is not None:
        norm.load_state_dict(saved)
    (found,) = engine.generate(PROMPTS[4:5], [GREEDY])
    return list(found.token_ids)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
def test_logits_that_overflow_end_their_requests_and_not_the_engine(
    ckpt_dir: str, weights: Mapping[str, Tensor], tp: int, pp: int
) -> None:
    wanted = oracle.greedy(CONFIG, weights, PROMPTS[4], 20)
    assert run_layout(overflowing_job, ckpt_dir, tp=tp, pp=pp) == [wanted] * (tp * pp)


def test_one_request_that_overflows_leaves_the_others_alone(
    ckpt_dir: str, weights: Mapping[str, Tensor]
) -> None:
    engine = make_engine(single(), ckpt_dir)
    assert engine.stage.tok_embeddings is not None
    odd = next(n for n in range(CONFIG.vocab_size) if n not in PROMPTS[4])
    wanted = oracle.greedy(CONFIG, weights, PROMPTS[4], 20)
    assert odd not in wanted
    engine.stage.tok_embeddings.weight.data[odd] = float("nan")
    requests = engine.make_requests([[1, odd], PROMPTS[4]], [GREEDY] * 2)
    for _ in engine.stream(requests):
        pass
    assert [request.finish_reason for request in requests] == ["error", "length"]
    assert requests[0].error.startswith("request 0: non-finite logits after position 1;")
    assert requests[1].output_token_ids == wanted and lost_blocks(engine) == 0


def broken_job(context: ParallelContext, ckpt_dir: str) -> None:
    engine = make_engine(context, ckpt_dir)
    if engine.stage.norm is not None:
        engine.stage.norm.register_forward_hook(fall_off)
    try:
        engine.generate(PROMPTS[:3], [GREEDY] * 3)
    except Exception:
        with pytest.raises(LlamaError, match=r"out of service after: .*the wheel fell off"):
            engine.generate(PROMPTS[:3], [GREEDY] * 3)
        with pytest.raises(LlamaError, match="build a new one"):
            engine.forward_rows(torch.tensor([[1]]), 0)
        raise


def fall_off(*of_the_module: object) -> None:
    raise RuntimeError("the wheel fell off")


def test_one_process_goes_on_after_an_error(ckpt_dir: str, weights: Mapping[str, Tensor]) -> None:
    engine = make_engine(single(), ckpt_dir)
    assert engine.stage.norm is not None
    handle = engine.stage.norm.register_forward_hook(fall_off)
    with pytest.raises(RuntimeError, match="the wheel fell off"):
        engine.generate(PROMPTS[:3], [GREEDY] * 3)
    handle.remove()
    assert lost_blocks(engine) == 0 and not engine.scheduler.has_unfinished
    (found,) = engine.generate(PROMPTS[4:5], [GREEDY])
    assert list(found.token_ids) == oracle.greedy(CONFIG, weights, PROMPTS[4], 20)


def test_with_peers_an_error_is_the_end_and_all_know_why(ckpt_dir: str) -> None:
    leader, sampler = run_layout(broken_job, ckpt_dir, pp=2, expect_error=True)
    assert isinstance(leader, PeerLostError) and "the wheel fell off" in str(leader)
    assert type(sampler) is RuntimeError
