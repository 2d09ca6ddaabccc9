"""bf16 is as near to fp64 as it can be: as near as transformers in bf16, by a stated rule.

The measure is the root mean square of the logits' error over that of the logits, over all prompts
of a model, against the same bf16 weights computed in fp64. Two sound implementations round at
different places, so their errors are alike but not equal: ours were 0.85 to 1.2 times those of
transformers for every model, seed and layout that was tried. The tolerance is 1.5 times; a residual
stream with 5 bits of mantissa instead of 7 has 1.6 to 1.8 times, attention with 5 bits 1.7 to 2.1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llama.parallel.context import single
from tests.helpers.hf_models import MODELS, prompts_of, random_init
from tests.helpers.parity import logits_in_bf16
from tests.helpers.ranks import run_layout

MARGIN = 1.5
STATED = {"Llama": 0.032, "Mistral": 0.036, "GPT2": 0.015}
"""The documented tolerances: MARGIN times the error of the family's worst model, rounded up."""
ON_RANKS = ("llama gqa", "mistral window 64", "gpt2")


@dataclass(frozen=True)
class Truth:
    """`logits` in fp64 by prompt; `error` is that of transformers in bf16."""

    folder: str
    prompts: list[list[int]]
    logits: list[Tensor]
    error: float


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Truth]:
    return {name: make_truth(name, str(tmp_path_factory.mktemp("model"))) for name in MODELS}


@torch.inference_mode()
def make_truth(name: str, folder: str) -> Truth:
    made = random_init(MODELS[name]).bfloat16()
    made.save_pretrained(folder)
    made.set_attn_implementation("sdpa")
    exact = copy.deepcopy(made).double()
    prompts = prompts_of(MODELS[name])
    logits = [exact(torch.tensor([prompt])).logits[0].clone() for prompt in prompts]
    rounded = [made(torch.tensor([prompt])).logits[0] for prompt in prompts]
    assert logits[0].dtype == torch.float64 and rounded[0].dtype == torch.bfloat16
    return Truth(folder, prompts, logits, relative_error(rounded, logits))


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    ours, truth = torch.cat(list(found)).double(), torch.cat(list(exact))
    return float((ours - truth).square().mean().sqrt() / truth.square().mean().sqrt())


@pytest.mark.parametrize("model", MODELS)
def test_one_process_is_as_near_to_fp64_as_transformers(
    model: str, truths: dict[str, Truth]
) -> None:
    truth = truths[model]
    found = logits_in_bf16(single(), truth.folder, truth.prompts)
    assert relative_error(found, truth.logits) <= MARGIN * truth.error


@pytest.mark.parametrize("model", ON_RANKS)
def test_two_ranks_are_as_near_to_fp64_as_transformers(
    model: str, truths: dict[str, Truth]
) -> None:
    truth = truths[model]
    for found in run_layout(logits_in_bf16, truth.folder, truth.prompts, tp=2):
        assert relative_error(found, truth.logits) <= MARGIN * truth.error


def test_stated_tolerances_are_those_that_follow(truths: dict[str, Truth]) -> None:
    for family, stated in STATED.items():
        errors = [truths[name].error for name in MODELS if MODELS[name].family == family]
        assert 0.75 * stated <= MARGIN * max(errors) <= stated, family
