"""Which model a Megatron checkpoint is: from its arguments, and where it has none, from its shapes.

Shapes tell all sizes but the number of heads, and nothing of RoPE; GPT-2's published sizes have
known heads, everything else must be said.
"""

from __future__ import annotations

from typing import Literal

from llama.checkpoint.canonical import EMBEDDING, POSITIONS
from llama.checkpoint.formats.megatron_args import ARGUMENTS_FILE, Arguments
from llama.checkpoint.formats.megatron_head import is_tied
from llama.checkpoint.formats.megatron_names import GATE_UP, QKV
from llama.checkpoint.formats.megatron_stages import MegatronModel
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError, UsageError

# (dim, layers) -> heads of the four GPT-2s, of which (1024, 24) is also the 345M release of 2019.
_GPT2_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}


def model_config(
    model: MegatronModel, arguments: Arguments, *, vocab_size: int, files: str
) -> ModelConfig:
    """The architecture. `files` names the checkpoint in messages.

    Raises CheckpointError when it is neither a GPT-2 nor a Llama, or cannot be known.
    """
    architecture = _architecture(model, arguments, files)
    is_llama = architecture == "llama"
    dim, n_layers = model.top[EMBEDDING][0].shape[1], len(model.layers)
    claimed = arguments.integer("num_layers")
    if claimed not in (None, n_layers):
        raise CheckpointError(
            f"{files}: {arguments.source} gives num_layers {claimed}, but the files hold "
            f"{n_layers} layers; it is incomplete or its arguments are of another model"
        )
    n_heads = _heads(arguments, dim, n_layers, files)
    positions = model.top.get(POSITIONS)
    ffn_rows = model.layers[0][f"{GATE_UP}.weight"][0].shape[0] * model.tp_size
    try:
        return ModelConfig(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=_groups(arguments) or n_heads,
            head_dim=arguments.integer("kv_channels") or dim // n_heads,
            ffn_dim=ffn_rows // 2 if is_llama else ffn_rows,
            vocab_size=vocab_size,
            norm_eps=arguments.number(
                "norm_epsilon", default=arguments.number("layernorm_epsilon", default=1e-5)
            ),
            rope_theta=arguments.number("rotary_base", default=10000.0),
            rope_scaling=_rope_scaling(arguments),
            rope_style="interleaved" if arguments.flag("rotary_interleaved") else "half",
            attention_bias=f"{QKV}.bias" in model.layers[0],
            mlp_bias=f"{GATE_UP}.bias" in model.layers[0],
            architecture=architecture,
            activation="silu" if is_llama else _gelu(arguments),
            tied_embeddings=is_tied(model, arguments),
            max_positions=(
                positions[0].shape[0]
                if positions and not is_llama
                else arguments.integer("max_position_embeddings")
            ),
        )
    except UsageError as error:
        raise CheckpointError(f"{files}: {error}") from error


def _architecture(model: MegatronModel, arguments: Arguments, files: str) -> str:
    if not model.layers or f"{GATE_UP}.weight" not in model.layers[0]:
        raise CheckpointError(f"{files}: the checkpoint holds no layers; it is incomplete")
    positions = arguments.text("position_embedding_type")
    if arguments.flag("use_rotary_position_embeddings"):  # the older flag, which wins
        positions = "rope"
    if positions is None and POSITIONS in model.top:
        positions = "learned_absolute"
    if positions is None:
        raise CheckpointError(
            f"{files}: the checkpoint has no position embeddings and does not say which it uses; "
            f'add a file {ARGUMENTS_FILE} with "position_embedding_type": "rope", "rotary_base", '
            f'"num_attention_heads", "normalization" and "swiglu"'
        )
    norm = arguments.text("normalization") or "LayerNorm"
    parts = (positions, norm, "SwiGLU" if arguments.flag("swiglu") else "GELU")
    if parts == ("learned_absolute", "LayerNorm", "GELU"):
        return "gpt2"
    if parts == ("rope", "RMSNorm", "SwiGLU"):
        return "llama"
    raise CheckpointError(
        f"{files}: the model has {positions} positions, {norm} and {parts[2]} by "
        f"{arguments.source}; known are learned_absolute, LayerNorm and GELU (GPT-2), and rope, "
        f"RMSNorm and SwiGLU (Llama)"
    )


def _heads(arguments: Arguments, dim: int, n_layers: int, files: str) -> int:
    found = arguments.integer("num_attention_heads") or _GPT2_HEADS.get((dim, n_layers))
    if found is None:
        raise CheckpointError(
            f"{files}: the checkpoint does not say how many heads its {n_layers} layers of width "
            f'{dim} have; add a file {ARGUMENTS_FILE} with {{"num_attention_heads": ...}} beside it'
        )
    if arguments.integer("kv_channels") is None and dim % found:
        raise CheckpointError(
            f"{files}: num_attention_heads {found} does not divide the width {dim}; "
            f"a model whose heads are sized otherwise gives kv_channels"
        )
    return found


def _groups(arguments: Arguments) -> int | None:
    """KV heads; Megatron writes num_query_groups 1 where queries are not grouped."""
    if not arguments.flag("group_query_attention", default=True):
        return None
    return arguments.integer("num_query_groups")


def _gelu(arguments: Arguments) -> Literal["gelu", "gelu_tanh"]:
    """Megatron's fused GELU is the tanh form; switched off, torch's exact one is used."""
    is_tanh = arguments.flag("bias_gelu_fusion", default=True) or arguments.flag("openai_gelu")
    return "gelu_tanh" if is_tanh else "gelu"


def _rope_scaling(arguments: Arguments) -> RopeScaling | None:
    factor = arguments.values.get("rotary_seq_len_interpolation_factor")
    if arguments.flag("use_rope_scaling"):
        if factor not in (None, 1):
            raise CheckpointError(
                f"{arguments.source}: rotary_seq_len_interpolation_factor and use_rope_scaling are "
                f"both given; one model has one of them"
            )
        return RopeScaling(factor=arguments.number("rope_scaling_factor", default=8.0))
    return None if factor in (None, 1) else RopeScaling(factor=float(factor), kind="linear")
