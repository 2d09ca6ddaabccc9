"""What Hugging Face calls the tensors of Llama, Mistral and GPT-2, and what they are here.

Tables for both directions. Which files hold the tensors is not known here, so other containers with
these names share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llama.checkpoint.canonical import EMBEDDING, HEAD, POSITIONS
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.wording import shortened
from llama.config import ModelConfig
from llama.errors import CheckpointError

QKV = "attention.wqkv"
"""Besides canonical names: GPT-2's queries, keys and values in one linear, in this order."""

LLAMA_TOP = {
    EMBEDDING: "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
LLAMA_LAYER = {
    f"{canonical}.{kind}": f"{module}.{kind}"
    for canonical, module in {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }.items()
    for kind in ("weight", "bias")
}
GPT2_TOP = {
    EMBEDDING: "transformer.wte.weight",
    POSITIONS: "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    HEAD: "lm_head.weight",
}
GPT2_LAYER = {
    f"{canonical}.{kind}": f"{module}.{kind}"
    for canonical, module in {
        QKV: "attn.c_attn",
        "attention.wo": "attn.c_proj",
        "feed_forward.w1": "mlp.c_fc",
        "feed_forward.w2": "mlp.c_proj",
        "attention_norm": "ln_1",
        "ffn_norm": "ln_2",
    }.items()
    for kind in ("weight", "bias")
}
# GPT-2's linears are "Conv1D" modules, which keep [in, out].
GPT2_TRANSPOSED = frozenset(
    f"{linear}.weight" for linear in (QKV, "attention.wo", "feed_forward.w1", "feed_forward.w2")
)


@dataclass(frozen=True)
class Spelling:
    """The names of one architecture: canonical -> stored, of the model and within a layer.

    Stored names begin with `prefix`, except the head's; a file of the bare model leaves it out.
    """

    top: Mapping[str, str]
    layer: Mapping[str, str]
    prefix: str
    layers: str

    def write(self, canonical: str) -> str:
        """The stored name of a canonical one (or of the fused "layers.N.attention.wqkv.*")."""
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", canonical)
        if match is None:
            return self.top[canonical]
        return f"{self.prefix}{self.layers}{match[1]}.{self.layer[match[2]]}"

    def parse(self, stored: str) -> str | None:
        """The canonical (or fused) name of a stored one, with or without prefix; None if none."""
        bare = stored.removeprefix(self.prefix)
        match = re.fullmatch(re.escape(self.layers) + r"(0|[1-9]\d{0,5})\.(.+)", bare)
        if match is None:
            spellings = (stored, self.prefix + stored)
            return next((name for name, known in self.top.items() if known in spellings), None)
        found = next((name for name, known in self.layer.items() if known == match[2]), None)
        return None if found is None else f"layers.{match[1]}.{found}"


LLAMA = Spelling(LLAMA_TOP, LLAMA_LAYER, "model.", "layers.")
GPT2 = Spelling(GPT2_TOP, GPT2_LAYER, "transformer.", "h.")
SPELLINGS = {"llama": LLAMA, "gpt2": GPT2}

_IGNORED = (
    (r"(.+\.)?rotary_emb\.inv_freq", "RoPE frequencies, computed from rope_theta instead"),
    (r"(.+\.)?h\.\d+\.attn\.bias", "the causal mask, which old files keep"),
    (r"(.+\.)?h\.\d+\.attn\.masked_bias", "the value of masked scores, which old files keep"),
)


@dataclass(frozen=True)
class NamedTensors:
    """Canonical tensors, the architecture that they have in the files, and what was left out.

    `config` differs from the given one in `tied_embeddings` alone.
    """

    tensors: Mapping[str, StoredTensor]
    config: ModelConfig
    ignored: Mapping[str, str]
    notes: tuple[str, ...]


def ignored_reason(stored: str) -> str | None:
    """Why a tensor of this name is no part of the model; None when it is."""
    return next((why for pattern, why in _IGNORED if re.fullmatch(pattern, stored)), None)


def canonical_tensors(
    stored: Mapping[str, StoredTensor], config: ModelConfig, *, source: str
) -> NamedTensors:
    """The tensors by canonical name, with nothing read: transposed and split by views alone.

    `source`, a file or a folder, begins the messages. Raises CheckpointError for unknown names,
    for two names of one tensor, and for a fused tensor of another shape than config asks for.
    """
    spelling = SPELLINGS[config.architecture]
    reasons = {name: ignored_reason(name) for name in stored}
    ignored = {name: reason for name, reason in reasons.items() if reason is not None}
    parsed = {name: spelling.parse(name) for name in stored if name not in ignored}
    unknown = [name for name, canonical in parsed.items() if canonical is None]
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} tensors have names that no {config.architecture} model of "
            f"Hugging Face has: {shortened(unknown)}; quantised weights, adapters and other "
            f"models are not read"
        )
    found: dict[str, StoredTensor] = {}
    names: dict[str, str] = {}
    for name, canonical in parsed.items():
        assert canonical is not None
        if canonical in names:
            raise CheckpointError(f"{source}: {names[canonical]} and {name} are the same tensor")
        names[canonical] = name
        found |= _unfused(name, canonical, stored[name], config, source=source)
    config, notes = _tied(found, config)
    return NamedTensors(found, config, ignored, notes)


def _unfused(
    name: str, canonical: str, tensor: StoredTensor, config: ModelConfig, *, source: str
) -> dict[str, StoredTensor]:
    """What one stored tensor is: itself, its transpose, or queries, keys and values."""
    match = re.fullmatch(r"(layers\.\d+\.)(.+)", canonical)
    if config.architecture != "gpt2" or match is None:
        return {canonical: tensor}
    if match[2] in GPT2_TRANSPOSED:
        if len(tensor.shape) != 2:
            raise CheckpointError(f"{source}: {name} has shape {tensor.shape}, but is a matrix")
        tensor = _transposed(tensor)
    if not match[2].startswith(QKV):
        return {canonical: tensor}
    if tensor.shape[:1] != (3 * config.dim,):
        raise CheckpointError(
            f"{source}: {name} has {tensor.shape[0] if tensor.shape else 1} outputs, but the "
            f"queries, keys and values of config.json have {3 * config.dim}"
        )
    kind = match[2].removeprefix(QKV)
    return {
        f"{match[1]}attention.{linear}{kind}": tensor.narrow(0, index * config.dim, config.dim)
        for index, linear in enumerate(("wq", "wk", "wv"))
    }


def _transposed(tensor: StoredTensor) -> StoredTensor:
    parts = tuple(part.view(lambda geometry: geometry.t()) for part in tensor.parts)
    return StoredTensor(parts, None if tensor.dim is None else 1 - tensor.dim)


def _tied(
    tensors: dict[str, StoredTensor], config: ModelConfig
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Put the head of a tied model among `tensors`; what they say wins over what config says."""
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if embedding is None:
        return config, ()
    if head is None:
        if not config.tied_embeddings:
            return config, ()
        tensors[HEAD] = embedding
        return config, ("the head is tied to the embedding",)
    extents = embedding.extents()
    if extents and head.extents() == extents and head.shape == embedding.shape:
        tensors[HEAD] = embedding
        note = "the head is tied to the embedding: both names stand for the same bytes"
        return replace(config, tied_embeddings=True), (note,)
    if not config.tied_embeddings:
        return config, ()
    note = "config.json ties the head to the embedding, but a head is stored and used"
    return replace(config, tied_embeddings=False), (note,)
