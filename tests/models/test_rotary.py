"""The angles of a step's tokens against transformers, and that no step's shape changes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama.config import RopeScaling
from llama.models.rotary import Rotary
from llama.ops.rope import dynamic_frequencies, inverse_frequencies
from tests.helpers.batches import NewTokens, make_batch
from tests.helpers.checkpoints import tiny_config

HEAD_DIM, THETA, CONTEXT = 32, 5e5, 64
DYNAMIC = RopeScaling(4.0, original_context=CONTEXT, kind="dynamic")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
KINDS: dict[str, tuple[RopeScaling | None, dict[str, Any]]] = {
    "default": (None, {}),
    "linear": (RopeScaling(4.0, kind="linear"), {"factor": 4.0}),
    "llama3 by 8": (RopeScaling(8.0, original_context=64), {"factor": 8.0, **LLAMA3}),
    "llama3 by 32": (RopeScaling(32.0, original_context=64), {"factor": 32.0, **LLAMA3}),
    "dynamic": (DYNAMIC, {"factor": 4.0}),
}


def theirs(name: str) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": name.split()[0], "rope_theta": THETA, **KINDS[name][1]},
    )


def rotary(scaling: RopeScaling | None) -> Rotary:
    made = Rotary(tiny_config(head_dim=HEAD_DIM, rope_theta=THETA, rope_scaling=scaling), 256)
    made.materialize(torch.device("cpu"))
    return made


def angles(made: Rotary, *sequences: tuple[int, int, int]) -> Tensor:
    """cos and sin (2, N, head_dim / 2) of new tokens at `start` to `stop` - 1 after `prompt`."""
    new = [
        NewTokens([0] * (stop - start), start, (0,), prompt) for start, stop, prompt in sequences
    ]
    return torch.stack(made.angles(make_batch(new, block_size=256)))


def angles_of_transformers(embedding: LlamaRotaryEmbedding, start: int, stop: int) -> Tensor:
    cos, sin = embedding(torch.zeros(1), torch.arange(start, stop).unsqueeze(0))
    return torch.stack((cos, sin))[:, 0, :, : HEAD_DIM // 2]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("default", "dynamic")])
def test_frequencies_are_those_of_transformers(name: str) -> None:
    expected, attention_factor = ROPE_INIT_FUNCTIONS[name.split()[0]](theirs(name))
    assert attention_factor == 1.0
    torch.testing.assert_close(
        inverse_frequencies(HEAD_DIM, THETA, KINDS[name][0]), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("length", [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 200, 10_000])
def test_dynamic_frequencies_are_those_of_transformers(length: int) -> None:
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs("dynamic"), seq_len=length)
    (found,) = dynamic_frequencies(torch.tensor([length]), HEAD_DIM, THETA, DYNAMIC)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    is_plain = torch.allclose(found, inverse_frequencies(HEAD_DIM, THETA), rtol=1e-6, atol=0)
    assert is_plain == (length <= CONTEXT)


@pytest.mark.parametrize("prompt", [5, CONTEXT, 100])
@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_and_what_follows_have_the_angles_of_transformers(name: str, prompt: int) -> None:
    """Within the original context, up to its end, and beyond it from the prompt on."""
    embedding, made = LlamaRotaryEmbedding(theirs(name)), rotary(KINDS[name][0])
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, prompt + 70))]:
        found = angles(made, (start, stop, prompt))
        expected = angles_of_transformers(embedding, start, stop)
        # A unit in the last place of an angle below 170 is 1.5e-5.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_dynamic_angles_are_of_the_sequence_not_of_the_step() -> None:
    """Chunks, company and a second computation (after preemption) change nothing."""
    made = rotary(DYNAMIC)
    prompt = angles(made, (0, 100, 100))
    answer = torch.cat([angles(made, (at, at + 1, 100)) for at in range(100, 130)], dim=1)
    chunks = [angles(made, cut) for cut in [(0, 7, 100), (7, 70, 100), (70, 100, 100)]]
    assert torch.equal(torch.cat(chunks, dim=1), prompt)
    again = angles(made, (0, 50, 50), (0, 130, 100), (200, 201, 3))[:, 50:180]
    assert torch.equal(again, torch.cat((prompt, answer), dim=1))
    assert not torch.equal(angles(made, (0, 130, 130))[:, :100], prompt)


def test_dynamic_angles_have_no_table() -> None:
    assert not list(rotary(DYNAMIC).buffers())
    assert len(list(rotary(None).buffers())) == 2
