"""The dicts that Megatron's generations keep one stage's tensors in, from short names.

Short names: "embedding", "positions", "0.qkv.weight", "final_norm.bias", "head", "head copy".
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Tree = dict[str, Any]
Names = Literal["transformer", "encoder", "norm", "core", "te"]

_LEGACY = {
    "attention_norm": "input_layernorm",
    "qkv": "self_attention.query_key_value",
    "wo": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "w2": "mlp.dense_4h_to_h",
}
_CORE = {
    "attention_norm": "input_layernorm",
    "qkv": "self_attention.linear_qkv",
    "wo": "self_attention.linear_proj",
    "ffn_norm": "pre_mlp_layernorm",
    "up": "mlp.linear_fc1",
    "w2": "mlp.linear_fc2",
}
_IN_LAYER: dict[str, dict[str, str]] = {
    "transformer": {**_LEGACY, "qkv": "attention.query_key_value", "wo": "attention.dense"},
    "encoder": _LEGACY,
    "norm": {**_LEGACY, "attention_norm": "input_norm", "ffn_norm": "post_attention_norm"},
    "core": _CORE,
    "te": {
        **_CORE,
        "attention_norm": "self_attention.linear_qkv.layer_norm",
        "ffn_norm": "mlp.linear_fc1.layer_norm",
    },
}


def stage_tree(tensors: Mapping[str, Tensor], names: Names) -> Tree:
    """One stage's model dict in the names of one generation."""
    return _core(tensors, names) if names in ("core", "te") else _legacy(tensors, names)


def _core(tensors: Mapping[str, Tensor], names: Names) -> Tree:
    top = {
        "embedding": "embedding.word_embeddings.weight",
        "positions": "embedding.position_embeddings.weight",
        "final_norm.weight": "decoder.final_layernorm.weight",
        "final_norm.bias": "decoder.final_layernorm.bias",
        "head": "output_layer.weight",
        "head copy": "output_layer.weight",
    }
    tree: Tree = OrderedDict()
    for short, tensor in tensors.items():
        tree[top.get(short) or f"decoder.layers.{_layer_name(short, names)}"] = tensor
    if names == "te":
        state = io.BytesIO()
        torch.save({"scale": torch.ones(1)}, state)
        state.seek(0)
        tree["decoder.layers.0.self_attention.linear_qkv._extra_state"] = state
    tree["decoder.final_layernorm._extra_state"] = None
    return tree


def _legacy(tensors: Mapping[str, Tensor], names: Names) -> Tree:
    stack: Tree = OrderedDict()
    embedding: Tree = {}
    language_model: Tree = {}
    model: Tree = {"language_model": language_model}
    final = "final_norm" if names == "norm" else "final_layernorm"
    for short, tensor in tensors.items():
        if short == "embedding":
            embedding["word_embeddings"] = {"weight": tensor}
        elif short == "positions":
            embedding["position_embeddings"] = {"weight": tensor}
        elif short.startswith("final_norm."):
            stack[short.replace("final_norm", final)] = tensor
        elif short == "head":
            language_model["output_layer"] = {"weight": tensor}
        elif short == "head copy":
            model["word_embeddings_for_head"] = {"weight": tensor}
        else:
            stack[f"layers.{_layer_name(short, names)}"] = tensor
    if embedding:
        language_model["embedding"] = embedding
    language_model["transformer" if names == "transformer" else "encoder"] = stack
    return model


def _layer_name(short: str, names: Names) -> str:
    layer, module, kind = short.split(".")
    full = _IN_LAYER[names][module]
    joint = "_" if full.endswith("layer_norm") else "."
    return f"{layer}.{full}{joint}{kind}"
