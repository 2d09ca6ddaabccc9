"""What Megatron-LM calls its tensors, in both generations and in both directions.

"legacy" is the nested `language_model` tree of Megatron-LM until 2023, "core" the flat names of
Megatron core. Names here are joined by dots, whatever was nested. Layer numbers are those of the
file, which count from 0 in every pipeline stage; what they are in the model is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llama.checkpoint.canonical import EMBEDDING, HEAD, POSITIONS

# Besides canonical names, two that Megatron fuses and one that it stores twice.
QKV = "attention.wqkv"
"""Queries, keys and values in the order of `megatron_qkv`; [q + 2 kv rows, dim]."""
GATE_UP = "feed_forward.w13"
"""Per tensor-parallel rank [gate; up] for SwiGLU; the up projection alone for GELU."""
HEAD_COPY = "output.copy"
"""The embedding once more on the last stage of a pipeline, for a tied head."""


@dataclass(frozen=True)
class Spelling:
    """One generation of names. Of several names for a tensor the first is the one to write.

    `top` and `in_layer` map a canonical (or fused) name to what files say; `layers` are the
    prefixes that a layer number follows.
    """

    name: str
    top: Mapping[str, tuple[str, ...]]
    layers: tuple[str, ...]
    in_layer: Mapping[str, tuple[str, ...]]

    def parse(self, stored: str) -> tuple[int | None, str] | None:
        """(layer number within the stage, or None, and canonical name); None when unknown."""
        for prefix in self.layers:
            match = re.fullmatch(re.escape(prefix) + r"(0|[1-9]\d{0,5})\.(.+)", stored)
            if match is not None:
                found = _canonical(self.in_layer, match[2])
                return None if found is None else (int(match[1]), found)
        found = _canonical(self.top, stored)
        return None if found is None else (None, found)

    def write(self, canonical: str, layer: int | None = None) -> str:
        """The dotted name of a tensor of the model, or of `layer`, counted within the stage."""
        if layer is None:
            return self.top[canonical][0]
        return f"{self.layers[0]}{layer}.{self.in_layer[canonical][0]}"


def is_ignored(stored: str) -> str | None:
    """Why a tensor of this name is no part of the model; None when it is."""
    if stored.endswith("_extra_state"):
        return "FP8 state of Transformer Engine, not used for inference"
    if stored.endswith("inv_freq"):
        return "RoPE frequencies, computed from rotary_base instead"
    return None


def spelling_of(stored: Mapping[str, object]) -> Spelling:
    """The generation that names like these are of; "core" when there is no sign of the other."""
    is_legacy = any(name.startswith(("language_model.", "word_embeddings_for")) for name in stored)
    return LEGACY if is_legacy else CORE


def _canonical(names: Mapping[str, tuple[str, ...]], stored: str) -> str | None:
    return next((name for name, spellings in names.items() if stored in spellings), None)


def _linear(canonical: str, *modules: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{canonical}.{kind}": tuple(f"{module}.{kind}" for module in modules)
        for kind in ("weight", "bias")
    }


def _norm(canonical: str, *modules: str, fused: str = "") -> dict[str, tuple[str, ...]]:
    """A norm, which Transformer Engine puts into the linear `fused` that follows it."""
    names = _linear(canonical, *modules)
    if not fused:
        return names
    return {
        name: (*spellings, f"{fused}.layer_norm_{name.rpartition('.')[2]}")
        for name, spellings in names.items()
    }


CORE = Spelling(
    name="core",
    top={
        EMBEDDING: ("embedding.word_embeddings.weight",),
        POSITIONS: ("embedding.position_embeddings.weight",),
        **_norm("norm", "decoder.final_layernorm"),
        HEAD: ("output_layer.weight",),
    },
    layers=("decoder.layers.",),
    in_layer={
        **_norm("attention_norm", "input_layernorm", fused="self_attention.linear_qkv"),
        **_linear(QKV, "self_attention.linear_qkv"),
        **_linear("attention.wo", "self_attention.linear_proj"),
        **_norm("ffn_norm", "pre_mlp_layernorm", fused="mlp.linear_fc1"),
        **_linear(GATE_UP, "mlp.linear_fc1"),
        **_linear("feed_forward.w2", "mlp.linear_fc2"),
    },
)

_ENCODERS = ("language_model.encoder.", "language_model.transformer.")

LEGACY = Spelling(
    name="legacy",
    top={
        EMBEDDING: ("language_model.embedding.word_embeddings.weight",),
        POSITIONS: ("language_model.embedding.position_embeddings.weight",),
        **_norm("norm", *(f"{e}{n}" for n in ("final_layernorm", "final_norm") for e in _ENCODERS)),
        HEAD: ("language_model.output_layer.weight",),
        HEAD_COPY: ("word_embeddings_for_head.weight",),
    },
    layers=tuple(f"{encoder}layers." for encoder in _ENCODERS),
    in_layer={
        **_norm("attention_norm", "input_layernorm", "input_norm"),
        **_linear(QKV, "self_attention.query_key_value", "attention.query_key_value"),
        **_linear("attention.wo", "self_attention.dense", "attention.dense"),
        **_norm("ffn_norm", "post_attention_layernorm", "post_attention_norm"),
        **_linear(GATE_UP, "mlp.dense_h_to_4h"),
        **_linear("feed_forward.w2", "mlp.dense_4h_to_h"),
    },
)
