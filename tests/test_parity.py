"""The parity matrix: every family on every layout says what transformers says.

Models are made, saved and asked by transformers, with every weight random, norms and biases too.
For each model and layout one job on real ranks checks logits, hidden states, attention weights,
the loss of the prompts, 64 greedy tokens after each, and that these tokens are as probable when
prompt and answer are scored in one pass. Prompts are generated from together, in chunks, and over a
cache that is as small as the model's windows allow.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llama.parallel.context import single
from tests.helpers.hf_models import MODELS, prompts_of, random_init
from tests.helpers.parity import Distance, Reference, distances
from tests.helpers.ranks import run_layout

N_GREEDY = 64
LEAST_MARGIN = 1e-3
LAYOUTS = [(2, 1), (3, 1), (1, 2), (2, 2)]
OPTIONS = {"block_size": 4, "max_num_batched_tokens": 24}


@torch.inference_mode()
def ask(model: Any, prompt: list[int]) -> Reference:
    """What transformers says to `prompt`, told at once and, for the tokens, step by step."""
    ids = torch.tensor([prompt])
    said = model(ids, output_hidden_states=True, output_attentions=True)
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=N_GREEDY,
        pad_token_id=0,
    )
    in_one_pass = model(generated).logits[0, len(prompt) - 1 : -1]
    best, second = in_one_pass.topk(2).values.T
    greedy: list[int] = generated[0, len(prompt) :].tolist()
    assert in_one_pass.argmax(dim=-1).tolist() == greedy
    assert (best - second).min() > LEAST_MARGIN, "rounding could decide: take another seed"
    assert len(set(greedy)) > 8, "too dull to tell models apart: take another seed"
    return Reference(
        prompt=prompt,
        logits=said.logits[0].clone(),
        hidden_states=[x[0].clone() for x in said.hidden_states],
        attentions=[x[0].clone() for x in said.attentions],
        loss=float(F.cross_entropy(said.logits[0, :-1], ids[0, 1:])),
        greedy=greedy,
    )


class Oracle:
    """Every model's folder and references, made when first asked for."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._folders = tmp_path_factory
        self._made: dict[str, tuple[str, list[Reference]]] = {}

    def __call__(self, name: str) -> tuple[str, list[Reference]]:
        if name not in self._made:
            model = MODELS[name]
            made = random_init(model)
            folder = self._folders.mktemp("model")
            made.save_pretrained(folder, max_shard_size=model.max_shard_size)
            self._made[name] = str(folder), [ask(made, prompt) for prompt in prompts_of(model)]
        return self._made[name]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory)


def check(found: list[Distance], references: list[Reference], *, where: str) -> None:
    for distance, reference in zip(found, references, strict=True):
        assert distance.greedy == reference.greedy, where
        assert distance.logits < 1e-4, (where, distance)
        assert distance.hidden_states < 1e-4, (where, distance)
        assert distance.attentions < 1e-4 and distance.row_sums < 1e-5, (where, distance)
        assert distance.loss < 1e-5, (where, distance)
        assert distance.generated < 1e-4, (where, distance)


@pytest.mark.parametrize("model", MODELS)
def test_one_process(model: str, oracle: Oracle) -> None:
    folder, references = oracle(model)
    check(distances(single(), folder, references, OPTIONS), references, where=model)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_ranks(model: str, tp: int, pp: int, oracle: Oracle) -> None:
    folder, references = oracle(model)
    ranks = run_layout(distances, folder, references, OPTIONS, tp=tp, pp=pp)
    for rank, found in enumerate(ranks):
        check(found, references, where=f"{model}, rank {rank} of tp {tp} x pp {pp}")


@pytest.mark.nightly
@pytest.mark.parametrize("model", MODELS)
def test_six_ranks(model: str, oracle: Oracle) -> None:
    test_ranks(model, 3, 2, oracle)


def test_transformers_windows_are_those_that_are_meant(oracle: Oracle) -> None:
    """Position q sees q - window < k <= q there, too; else the matrix would prove little."""
    for name in ("mistral window 8", "mistral window 64"):
        window = MODELS[name].values["sliding_window"]
        _, references = oracle(name)
        n_prompt = len(references[0].prompt)
        assert n_prompt == 4 * window + 1
        q, k = torch.meshgrid(torch.arange(n_prompt), torch.arange(n_prompt), indexing="ij")
        for weights in references[0].attentions:
            assert torch.equal(weights[0] > 0, (q - window < k) & (k <= q))


def test_models_are_told_apart(oracle: Oracle) -> None:
    texts = {tuple(oracle(name)[1][0].greedy) for name in MODELS}
    assert len(texts) == len(MODELS)
