"""The arguments that Megatron-LM keeps in a checkpoint and takes its model from."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

from llama.config import ModelConfig

VOCAB_UNIT = 128


def padded_vocab(config: ModelConfig, tp: int) -> int:
    """Rows of the embedding, which every tensor rank has as many of."""
    unit = VOCAB_UNIT * tp
    return -(-config.vocab_size // unit) * unit


def arguments(
    config: ModelConfig, *, tp: int, pp: int, dtype: torch.dtype, is_tied: bool
) -> Namespace:
    """What `load_args_from_checkpoint` and `check_checkpoint_args` of Megatron look at."""
    is_gpt2 = config.architecture == "gpt2"
    is_grouped = config.n_kv_heads != config.n_heads
    positions = config.max_positions or 4096
    found: dict[str, Any] = {
        "num_layers": config.n_layers,
        "hidden_size": config.dim,
        "ffn_hidden_size": config.ffn_dim,
        "num_attention_heads": config.n_heads,
        "kv_channels": config.head_dim,
        "group_query_attention": is_grouped,
        "num_query_groups": config.n_kv_heads if is_grouped else 1,
        "max_position_embeddings": positions,
        "seq_length": positions,
        "vocab_size": config.vocab_size,
        "orig_vocab_size": config.vocab_size,
        "padded_vocab_size": padded_vocab(config, tp),
        "make_vocab_size_divisible_by": VOCAB_UNIT,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        "data_parallel_size": 1,
        "data_parallel_random_init": False,
        "position_embedding_type": "learned_absolute" if is_gpt2 else "rope",
        "add_position_embedding": is_gpt2,
        "normalization": "LayerNorm" if is_gpt2 else "RMSNorm",
        "layernorm_epsilon": config.norm_eps,  # until 2023
        "norm_epsilon": config.norm_eps,
        "add_bias_linear": config.mlp_bias,
        "swiglu": not is_gpt2,
        "bias_gelu_fusion": config.activation == "gelu_tanh",
        "openai_gelu": False,
        "untie_embeddings_and_output_weights": not is_tied,
        "tokenizer_type": "GPT2BPETokenizer" if is_gpt2 else "HuggingFaceTokenizer",
        "transformer_impl": "local",
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    return Namespace(**found if is_gpt2 else {**found, **_rope(config)})


def _rope(config: ModelConfig) -> dict[str, Any]:
    theta, scaling = config.rope_theta, config.rope_scaling
    found: dict[str, Any] = {
        "use_rotary_position_embeddings": True,
        "rotary_base": int(theta) if theta.is_integer() else theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
    }
    if scaling is None:
        return found
    if scaling.kind == "llama3":
        return {**found, "use_rope_scaling": True, "rope_scaling_factor": scaling.factor}
    return {**found, "rotary_seq_len_interpolation_factor": int(scaling.factor)}
