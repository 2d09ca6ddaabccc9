"""Canonical weights as Hugging Face directories of Llama, Mistral and GPT-2.

Names, RoPE order and the transposed linears of GPT-2 are written out here a second time, on
purpose: a reader is not tested by its own tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama.config import ModelConfig
from tests.helpers.checkpoints import Weights

Kind = Literal["safetensors", "bin"]


def write_hf(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    kind: Kind = "safetensors",
    n_shards: int = 1,
    dtype: torch.dtype = torch.float32,
    old_spelling: bool = False,
    is_half: bool = False,
    has_prefix: bool = True,
    has_buffers: bool = False,
    config_extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `weights` to the folder `path`, with an index when there are several shards.

    `is_half` says that wq and wk rotate halves already. `has_prefix` False names the tensors as
    the bare model does, `has_buffers` adds what old versions saved besides. A key of
    `config_extra` replaces the one of config.json; returns `path`.
    """
    path.mkdir(parents=True, exist_ok=True)
    spelled = hf_config(config, old_spelling=old_spelling) | dict(config_extra or {})
    (path / "config.json").write_text(json.dumps(spelled))
    stored = hf_weights(config, weights, is_half=is_half)
    stored = {name: weight.to(dtype) for name, weight in stored.items()}
    if has_buffers:
        stored |= old_buffers(config)
    if not has_prefix:
        stored = {bare_name(name): weight for name, weight in stored.items()}
    write_shards(path, stored, kind=kind, n_shards=n_shards)
    return path


def write_shards(path: Path, stored: Weights, *, kind: Kind, n_shards: int) -> None:
    """The weight files, each with as many tensors as the others, and the index of several."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    if n_shards == 1:
        _save(path / f"{stem}.{kind}", stored, kind)
        return
    weight_map: dict[str, str] = {}
    names = list(stored)
    for shard in range(n_shards):
        file = f"{stem}-{shard + 1:05d}-of-{n_shards:05d}.{kind}"
        held = names[shard * len(names) // n_shards : (shard + 1) * len(names) // n_shards]
        _save(path / file, {name: stored[name] for name in held}, kind)
        weight_map |= dict.fromkeys(held, file)
    total = sum(weight.nbytes for weight in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def hf_config(config: ModelConfig, *, old_spelling: bool = False) -> dict[str, Any]:
    """The config.json of `config`, in the spelling of transformers 4 or 5."""
    dtype_key = "torch_dtype" if old_spelling else "dtype"
    common = {
        dtype_key: "float32",
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "use_cache": True,
    }
    if config.architecture == "gpt2":
        return common | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": config.dim,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": None if config.ffn_dim == 4 * config.dim else config.ffn_dim,
            "n_positions": config.max_positions,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
        }
    is_mistral = config.sliding_window is not None
    spelled = common | {
        "model_type": "mistral" if is_mistral else "llama",
        "architectures": ["MistralForCausalLM" if is_mistral else "LlamaForCausalLM"],
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        **_rope(config, old_spelling=old_spelling),
    }
    if config.max_positions is not None:
        spelled["max_position_embeddings"] = config.max_positions
    if is_mistral:
        return {**spelled, "sliding_window": config.sliding_window}
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return {**spelled, **biases}


def _rope(config: ModelConfig, *, old_spelling: bool) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            scaling |= {
                "low_freq_factor": config.rope_scaling.low_freq_factor,
                "high_freq_factor": config.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": config.rope_scaling.original_context,
            }
    if old_spelling:
        return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
    scaling = {"rope_type": "default"} if scaling is None else scaling
    return {"rope_parameters": {**scaling, "rope_theta": config.rope_theta}}


def hf_weights(config: ModelConfig, weights: Mapping[str, Tensor], *, is_half: bool) -> Weights:
    """The state dict that transformers has of the same model; no head when it is tied."""
    make = _gpt2_weights if config.architecture == "gpt2" else _llama_weights
    stored = make(config, weights, is_half=is_half)
    if not config.tied_embeddings:
        stored["lm_head.weight"] = weights["output.weight"]
    return stored


def _llama_weights(config: ModelConfig, weights: Mapping[str, Tensor], *, is_half: bool) -> Weights:
    stored = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
    }
    for layer in range(config.n_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        stored[f"{theirs}.input_layernorm.weight"] = weights[f"{ours}.attention_norm.weight"]
        stored[f"{theirs}.post_attention_layernorm.weight"] = weights[f"{ours}.ffn_norm.weight"]
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            q, k, v, o = (weights[f"{ours}.attention.w{which}.{kind}"] for which in "qkvo")
            if not is_half:
                q, k = half(q, config.n_heads), half(k, config.n_kv_heads)
            for which, weight in zip("qkvo", (q, k, v, o), strict=True):
                stored[f"{theirs}.self_attn.{which}_proj.{kind}"] = weight
        for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
            for number, which in enumerate(("gate", "down", "up"), start=1):
                weight = weights[f"{ours}.feed_forward.w{number}.{kind}"]
                stored[f"{theirs}.mlp.{which}_proj.{kind}"] = weight
    return stored


def half(weight: Tensor, n_heads: int) -> Tensor:
    """The rows of each head with the even ones first: pairs (2i, 2i+1) become (i, i + half)."""
    heads = weight.chunk(n_heads)
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


def _gpt2_weights(config: ModelConfig, weights: Mapping[str, Tensor], *, is_half: bool) -> Weights:
    del is_half  # GPT-2 does not rotate
    stored = {
        "transformer.wte.weight": weights["tok_embeddings.weight"],
        "transformer.wpe.weight": weights["pos_embeddings.weight"],
    }
    for layer in range(config.n_layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            stored[f"{theirs}.ln_1.{kind}"] = weights[f"{ours}.attention_norm.{kind}"]
            stored[f"{theirs}.ln_2.{kind}"] = weights[f"{ours}.ffn_norm.{kind}"]
            qkv = torch.cat([weights[f"{ours}.attention.w{which}.{kind}"] for which in "qkv"])
            linears = {
                "attn.c_attn": qkv,
                "attn.c_proj": weights[f"{ours}.attention.wo.{kind}"],
                "mlp.c_fc": weights[f"{ours}.feed_forward.w1.{kind}"],
                "mlp.c_proj": weights[f"{ours}.feed_forward.w2.{kind}"],
            }
            for name, weight in linears.items():
                stored[f"{theirs}.{name}.{kind}"] = (
                    weight.T.contiguous() if weight.dim() == 2 else weight
                )
    stored["transformer.ln_f.weight"] = weights["norm.weight"]
    stored["transformer.ln_f.bias"] = weights["norm.bias"]
    return stored


def old_buffers(config: ModelConfig) -> Weights:
    """What old versions of transformers saved although it is no weight."""
    stored: Weights = {}
    for layer in range(config.n_layers):
        if config.architecture == "gpt2":
            size = config.max_positions or 1
            mask = torch.ones(size, size, dtype=torch.uint8).tril()
            stored[f"transformer.h.{layer}.attn.bias"] = mask.view(1, 1, size, size)
            stored[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        else:
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            stored[name] = torch.ones(config.head_dim // 2)
    return stored


def bare_name(name: str) -> str:
    """As the model without its head calls the tensor."""
    return name.removeprefix("model.").removeprefix("transformer.")


def _save(path: Path, stored: Weights, kind: Kind) -> None:
    if kind == "safetensors":
        whole = {name: weight.clone() for name, weight in stored.items()}  # shares no storage
        save_file(whole, path, metadata={"format": "pt"})
    else:
        torch.save(stored, path)
