"""GPT-2 as transformers runs it, from either format and on every layout, and where it ends.

Four heads, 100 columns and 97 words share evenly over neither 2 nor 3 ranks. That the tanh GELU
gives transformers' answers on ranks, too, is in tests/test_parity.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llama.config import ModelConfig
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.layers.parameter import pieces
from llama.models.decoder import DecoderStage, stage_of, stages
from llama.parallel.context import single
from tests.helpers.answers import Answer, answers
from tests.helpers.checkpoints import Weights
from tests.helpers.engines import make_engine
from tests.helpers.gpt2_weights import gpt2_shapes, random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import write_megatron
from tests.helpers.ranks import run_layout
from tests.helpers.stages import Place

PROMPT = [1, 17, 42, 88, 3, 64, 8, 8, 23, 77, 5, 31, 90, 2, 55, 13, 70, 29, 9, 46]
N_GREEDY = 64
UNEVEN = tiny_gpt2_config(dim=44, head_dim=11, ffn_dim=100, vocab_size=97, max_positions=128)
MODELS = {"tanh": UNEVEN, "erf": replace(UNEVEN, activation="gelu")}


def uneven_weights() -> Weights:
    """Words close to each other, so that a position counts and no answer repeats itself."""
    weights = random_gpt2(UNEVEN, seed=2)
    weights["tok_embeddings.weight"].mul_(0.35)
    return weights


@torch.inference_mode()
def answer_of_transformers(folder: str) -> Answer:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    prompt = torch.tensor([PROMPT])
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=N_GREEDY,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best, second = torch.cat(generated.logits).topk(2).values.T
    assert (best - second).min() > 1e-3, "rounding could decide: take another seed"
    return Answer(model(prompt).logits[0], generated.sequences[0, len(PROMPT) :].tolist())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("gpt2")
    weights = uneven_weights()
    return {name: str(write_hf(folder / name, config, weights)) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def expected(folders: dict[str, str]) -> dict[str, Answer]:
    return {name: answer_of_transformers(folder) for name, folder in folders.items()}


def check(got: Answer, want: Answer) -> None:
    torch.testing.assert_close(got.logits, want.logits, atol=1e-4, rtol=0)
    assert got.token_ids == want.token_ids


@pytest.mark.parametrize("name", MODELS)
def test_one_process_answers_as_transformers(
    name: str, folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    found = answers(single(), {name: folders[name]}, PROMPT, N_GREEDY)
    check(found[name], expected[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tp", "pp"),
    [
        pytest.param(2, 1, marks=pytest.mark.nightly),
        (3, 1),
        pytest.param(1, 2, marks=pytest.mark.nightly),
        (2, 2),
    ],
)
def test_every_rank_answers_as_transformers(
    tp: int, pp: int, folders: dict[str, str], expected: dict[str, Answer]
) -> None:
    asked = {"erf": folders["erf"]}
    for found in run_layout(answers, asked, PROMPT, N_GREEDY, tp=tp, pp=pp):
        check(found["erf"], expected["erf"])


def test_the_answers_can_tell_the_models_apart(expected: dict[str, Answer]) -> None:
    tanh, erf = expected["tanh"], expected["erf"]
    assert (tanh.logits - erf.logits).abs().max() > 1e-3
    assert len(set(erf.token_ids)) > 8


@pytest.mark.parametrize("how", [{"tp": 2, "version": 0}, {"pp": 3, "version": 3.0}])
def test_megatrons_files_give_the_same_answer(
    tmp_path: Path, how: dict[str, Any], folders: dict[str, str]
) -> None:
    write_megatron(tmp_path, MODELS["tanh"], uneven_weights(), **how)
    asked = {"megatron": str(tmp_path), "hf": folders["tanh"]}
    found = answers(single(), asked, PROMPT, N_GREEDY)
    assert torch.equal(found["megatron"].logits, found["hf"].logits)
    assert found["megatron"].token_ids == found["hf"].token_ids


# Stages -----------------------------------------------------------------------------------------


def names_of(config: ModelConfig, *, tp_size: int, pp_rank: int, pp_size: int) -> set[str]:
    stage = DecoderStage(
        config,
        stage_of(config, pp_size=pp_size, pp_rank=pp_rank),
        tp=Place(tp_size - 1, tp_size),
        dtype=torch.float32,
        max_positions=48,
    )
    return {name for _, _, name in pieces(stage)}


@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_tied_embedding_is_read_by_the_stages_that_need_it(tp_size: int) -> None:
    config = tiny_gpt2_config()
    vocabulary = {"tok_embeddings.weight", "output.weight"}
    whole = names_of(config, tp_size=tp_size, pp_rank=0, pp_size=1)
    assert whole == gpt2_shapes(config).keys() - {"output.weight"}
    first, last = (names_of(config, tp_size=tp_size, pp_rank=rank, pp_size=2) for rank in (0, 1))
    assert first & vocabulary == {"tok_embeddings.weight"}
    assert last & vocabulary == {"output.weight"}
    assert first | last == gpt2_shapes(config).keys() and not first & last


def test_positions_cost_the_first_stage_no_time() -> None:
    many = tiny_gpt2_config(n_layers=6, max_positions=1024)
    assert many.position_parameters > 2 * many.layer_parameters
    assert [len(stage.layers) for stage in stages(many, pp_size=2)] == [3, 3]


# Limits -----------------------------------------------------------------------------------------


def test_generation_ends_with_the_last_position(folders: dict[str, str]) -> None:
    engine = make_engine(single(), folders["tanh"], max_seq_len=128)
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    (output,) = engine.generate([PROMPT], [params])
    assert (len(output.token_ids), output.finish_reason) == (128 - len(PROMPT), "length")
    with pytest.raises(UsageError, match="has a prompt of 129 tokens, max_seq_len is 128"):
        engine.generate([[1] * 129], [params])


def test_more_positions_than_were_learned_are_refused(folders: dict[str, str]) -> None:
    with pytest.raises(
        UsageError, match=r"max_seq_len 129 exceeds the 128 positions .* lower it to at most 128"
    ):
        make_engine(single(), folders["tanh"], max_seq_len=129)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "silu"}, "gpt2 needs activation gelu or gelu_tanh, got silu"),
        ({"max_positions": None}, "its config says not how many"),
    ],
)
def test_an_impossible_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        names_of(tiny_gpt2_config(**changes), tp_size=1, pp_rank=0, pp_size=1)
