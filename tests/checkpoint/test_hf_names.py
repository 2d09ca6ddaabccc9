"""Hugging Face names in both directions, and tensors that lie in several parts under them."""

from __future__ import annotations

import pytest
import torch

from llama.checkpoint.canonical import expected_shapes
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.hf_names import GPT2, LLAMA, canonical_tensors, ignored_reason
from llama.config import ModelConfig
from tests.helpers.checkpoints import tiny_config
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import bare_name, hf_weights

CONFIGS = [tiny_config(attention_bias=True, mlp_bias=True), tiny_gpt2_config()]


def spelled(config: ModelConfig) -> list[str]:
    """The canonical names that one stored tensor has each."""
    fused = [f"attention.w{which}." for which in "qkv"]
    is_gpt2 = config.architecture == "gpt2"
    return [
        name for name in expected_shapes(config) if not (is_gpt2 and any(f in name for f in fused))
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=["llama", "gpt2"])
def test_every_name_comes_back_with_and_without_prefix(config: ModelConfig) -> None:
    spelling = GPT2 if config.architecture == "gpt2" else LLAMA
    for name in spelled(config):
        assert spelling.parse(spelling.write(name)) == name
        assert spelling.parse(bare_name(spelling.write(name))) == name


@pytest.mark.parametrize(
    ("canonical", "stored"),
    [
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
        ("layers.10.attention.wo.bias", "model.layers.10.self_attn.o_proj.bias"),
        ("layers.0.feed_forward.w2.weight", "model.layers.0.mlp.down_proj.weight"),
        ("layers.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("output.weight", "lm_head.weight"),
    ],
)
def test_names_of_llama(canonical: str, stored: str) -> None:
    assert (LLAMA.write(canonical), LLAMA.parse(stored)) == (stored, canonical)


@pytest.mark.parametrize(
    "stored",
    ["", "model.", "lm_head.bias", "model.layers.x.mlp.up_proj.weight", "model.layers.0.mlp",
     "model.layers.-1.mlp.up_proj.weight", "model.layers.1000000.mlp.up_proj.weight",
     "model.model.norm.weight", "transformer.wte.weight", "layers.0.attention.wq.weight"],
)  # fmt: skip
def test_other_names_are_unknown(stored: str) -> None:
    assert LLAMA.parse(stored) is None
    assert ignored_reason(stored) is None


@pytest.mark.parametrize(
    "stored",
    ["model.layers.3.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "h.0.attn.bias",
     "transformer.h.11.attn.masked_bias"],
)  # fmt: skip
def test_old_buffers_are_known(stored: str) -> None:
    assert ignored_reason(stored)


@pytest.mark.parametrize("dim", [0, 1])
def test_linears_that_lie_in_parts_are_transposed_and_split(dim: int) -> None:
    config = tiny_gpt2_config()
    weights = random_gpt2(config)
    stored = {}
    for name, weight in hf_weights(config, weights, is_half=True).items():
        along = min(dim, weight.dim() - 1)
        parts = [MemoryTensor(part) for part in weight.split(weight.shape[along] // 2 - 1, along)]
        stored[name] = StoredTensor.of(parts, dim=along)
    named = canonical_tensors(stored, config, source="here")
    assert named.tensors.keys() == weights.keys()
    for name, tensor in named.tensors.items():
        out = torch.empty(tensor.shape)
        tensor.read_into(out)
        assert torch.equal(out, weights[name]), name
