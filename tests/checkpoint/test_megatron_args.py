"""Arguments of Megatron that are impossible, contradict the files or are not implemented."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama.checkpoint import open_checkpoint
from llama.errors import CheckpointError
from tests.helpers.megatron_files import write_megatron
from tests.helpers.megatron_models import (
    GPT2,
    GPT2_WEIGHTS,
    ITERATION,
    LLAMA,
    LLAMA_WEIGHTS,
    message_of,
)

REFUSED_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"num_experts": 8}, "num_experts 8 means a mixture of experts"),
    "expert ranks": ({"expert_model_parallel_size": 2}, "means a mixture of experts"),
    "latent": ({"multi_latent_attention": True}, "means multi-latent attention"),
    "1p": ({"apply_layernorm_1p": True}, "norms whose weight counts from 1"),
    "post": ({"apply_residual_connection_post_layernorm": True}, "residuals after the norm"),
    "qk norm": ({"qk_layernorm": True}, "normalised queries and keys"),
    "window": ({"window_size": (128, 0)}, "window_size a tuple means a sliding attention window"),
    "partial": ({"rotary_percent": 0.5}, "rotary_percent 0.5 means positions in a part"),
    "qkv bias": ({"add_qkv_bias": True, "add_bias_linear": False}, "add_qkv_bias without"),
    "alibi": ({"position_embedding_type": "alibi"}, "the model has alibi positions, RMSNorm and"),
    "norm": ({"normalization": "LayerNorm"}, "rope positions, LayerNorm and SwiGLU"),
    "gelu": ({"swiglu": False}, "rope positions, RMSNorm and GELU"),
    "heads": ({"num_attention_heads": 0}, "num_attention_heads must be an integer from 1 to"),
    "many": ({"hidden_size": 2**40}, "hidden_size must be an integer from 1 to 1,048,576"),
    "kind": ({"rotary_base": "much"}, "rotary_base must be a number from 1 to 1e+15, not 'much'"),
    "flag": ({"swiglu": 1}, "swiglu must be true or false, not 1"),
    "text": ({"normalization": True}, "normalization must be text"),
    "layers": ({"num_layers": 5}, "num_layers 5, but the files hold 4 layers"),
    "other heads": (
        {"num_attention_heads": 4, "num_query_groups": 4, "kv_channels": None},
        "a fused QKV tensor has shape (64, 32), but 96 rows belong to 4 heads in 4 groups",
    ),
    "indivisible": ({"num_attention_heads": 12}, "12 does not divide the width 32"),
    "groups": ({"num_query_groups": 3}, "n_kv_heads 3 does not divide n_heads 8"),
    "vocabulary": ({"vocab_size": 999}, "has 128 rows, but the args in"),
    "both scalings": (
        {"use_rope_scaling": True, "rotary_seq_len_interpolation_factor": 2},
        "are both given",
    ),
}


@pytest.mark.parametrize("what", REFUSED_ARGUMENTS)
def test_arguments_that_are_refused(what: str, tmp_path: Path) -> None:
    extra, expected = REFUSED_ARGUMENTS[what]
    extra = {"kv_channels": None, **extra} if what == "indivisible" else extra
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core", args_extra=extra)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


def test_more_tensor_ranks_than_groups(tmp_path: Path) -> None:
    write_megatron(
        tmp_path, LLAMA, LLAMA_WEIGHTS, names="core", tp=2, args_extra={"num_query_groups": 1}
    )
    assert "2 tensor ranks cannot share 8 heads in 1 query groups" in message_of(tmp_path)


def test_groups_before_there_were_any(tmp_path: Path) -> None:
    extra = {"group_query_attention": True, "num_query_groups": 2}
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, version=1.0, args_extra=extra)
    assert "checkpoint_version 1.0 has no query groups" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"num_attention_head": 4}', "unknown keys num_attention_head; known: "),
        ('{"num_attention_heads": 2}', "gives num_attention_heads 2, but the args in"),
        ('{"num_attention_heads": -2}', "must be an integer from 1"),
        ('{"num_experts": 2}', "means a mixture of experts"),
        ("[", "is not valid JSON"),
    ],
)
def test_an_arguments_file_at_odds(text: str, expected: str, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    (tmp_path / "megatron_args.json").write_text(text)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path / "megatron_args.json") in message


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip


KEYS = (
    "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "group_query_attention", "vocab_size", "position_embedding_type", "normalization", "swiglu",
    "rotary_base", "rotary_percent", "norm_epsilon", "tensor_model_parallel_size", "num_experts",
    "pipeline_model_parallel_size", "untie_embeddings_and_output_weights", "use_rope_scaling",
    "rope_scaling_factor", "max_position_embeddings", "bias_gelu_fusion",
)  # fmt: skip


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    return write_megatron(path, LLAMA, LLAMA_WEIGHTS, names="core", vocab_divisible_by=1)


@pytest.mark.slow
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_arguments_make_a_model_or_our_error(values: dict[str, Any], one_file: Path) -> None:
    path = one_file / ITERATION / "mp_rank_00" / "model_optim_rng.pt"
    content = one_file.parent / "content"
    if not content.exists():
        torch.save(torch.load(path, weights_only=False), content)
    held = torch.load(content, weights_only=False)
    held["args"] = Namespace(**{**vars(held["args"]), **values})
    torch.save(held, path)
    with contextlib.suppress(CheckpointError):
        assert open_checkpoint(one_file).tensors.keys() == LLAMA_WEIGHTS.keys()
