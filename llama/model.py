"""Meta's names for the model: ModelArgs, Transformer, and the functions beside them. A thin face.

The model itself is `llama.models`; here is what programs written for Meta's package touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.meta_layout import is_rope_table
from llama.checkpoint.formats.params import Params, ffn_dim
from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ModelConfig, RopeScaling
from llama.engine.build import load_stage, make_cache
from llama.engine.decide import resolve_dtype
from llama.engine.engine import Engine
from llama.errors import UsageError
from llama.layers.attention import ParallelAttention as Attention
from llama.layers.mlp import SwiGLU as FeedForward
from llama.layers.norm import RMSNorm
from llama.models.decoder import tensor_names
from llama.models.llama import LlamaBlock as TransformerBlock
from llama.ops.rope import inverse_frequencies, rope_table
from llama.parallel.context import single

__all__ = [
    "Attention",
    "FeedForward",
    "ModelArgs",
    "RMSNorm",
    "Transformer",
    "TransformerBlock",
    "apply_rotary_emb",
    "precompute_freqs_cis",
    "repeat_kv",
    "reshape_for_broadcast",
]


@dataclass
class ModelArgs:
    """Everything that any release's params.json says, and the sizes of one run.

    The union of the fields of Llama 2, Code Llama, Llama 3 and 3.1, with Llama 2's defaults: only
    its files leave `rope_theta` out, and they mean 10000. `vocab_size` -1 means that the weights
    tell. An unknown key is a TypeError, as in Meta's package.
    """

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    max_batch_size: int = 32
    max_seq_len: int = 2048

    @classmethod
    def from_config(
        cls, config: ModelConfig, *, max_batch_size: int, max_seq_len: int
    ) -> ModelArgs:
        """The args of a loaded model.

        A ModelConfig knows its feed-forward width, not the two numbers it was made from; where the
        defaults do not give that width, two are chosen here that do.
        """
        args = cls(
            dim=config.dim,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            use_scaled_rope=config.rope_scaling is not None,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
        )
        if ffn_dim(args.dim, multiple_of=args.multiple_of, multiplier=None) != config.ffn_dim:
            args.multiple_of = config.ffn_dim
            args.ffn_dim_multiplier = config.ffn_dim / int(2 * 4 * config.dim / 3)
        return args

    def to_config(self, *, vocab_size: int) -> ModelConfig:
        """The architecture, as a params.json with these values would give it."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        values = {name: value for name, value in given.items() if value is not None}
        return Params(Path("ModelArgs"), values, {}).model_config(vocab_size=vocab_size)


class IncompatibleKeys(NamedTuple):
    """What torch's load_state_dict returns. Nothing is ever missing: that is an error here."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Transformer(nn.Module):
    """The model under Meta's names.

    `Llama.build` makes one over all ranks. `Transformer(params)` is one process without weights
    until `load_state_dict` brings them. The submodules are this rank's share: linear layers that
    read the same input are fused, `layers` is keyed by layer number, and what another pipeline
    stage holds is None.
    """

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        self.params = params
        self._engine: Engine | None = None

    @classmethod
    def from_engine(cls, engine: Engine) -> Transformer:
        """The face of a running engine."""
        sizes = engine.config
        model = cls(
            ModelArgs.from_config(
                engine.model_config,
                max_batch_size=sizes.max_batch_size,
                max_seq_len=sizes.max_seq_len,
            )
        )
        model._attach(engine)
        return model

    def _attach(self, engine: Engine) -> None:
        self._engine = engine
        for name in ("tok_embeddings", "layers", "norm", "output"):
            setattr(self, name, getattr(engine.stage, name))

    @property
    def engine(self) -> Engine:
        """What computes. Raises UsageError while there are no weights."""
        if self._engine is None:
            raise UsageError(
                "this Transformer has no weights yet; call load_state_dict with the full tensors "
                "of a Meta checkpoint, or use Llama.build"
            )
        return self._engine

    @property
    def vocab_size(self) -> int:
        return self.params.vocab_size

    @property
    def n_layers(self) -> int:
        return self.params.n_layers

    @cached_property
    def freqs_cis(self) -> Tensor:
        """(2 · max_seq_len, head_dim / 2) complex64, as Meta's attribute. Nothing here uses it."""
        config = self.engine.model_config
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        return torch.complex(*rope_table(frequencies, 2 * self.params.max_seq_len))

    def forward(self, tokens: Tensor, start_pos: int) -> Tensor:
        """float32 logits (batch, seq, vocab_size) on every rank, where `tokens` (batch, seq) are.

        Collective. Positions before `start_pos` are those of earlier calls with the same rows.
        """
        return self.engine.forward_rows(tokens, start_pos).to(tokens.device)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Take the full tensors of a Meta checkpoint and build a one-process engine on the CPU.

        `strict` False lets other names be, and returns them; RoPE tables are no surprise either
        way. `assign` has no effect, since weights are copied into fused ones. Raises UsageError for
        one shard of several and for unknown names, CheckpointError when something is missing.
        """
        tensors = {name: t for name, t in state_dict.items() if not is_rope_table(name)}
        embedding = tensors.get("tok_embeddings.weight")
        vocab_size = self.params.vocab_size
        if vocab_size < 1 and embedding is not None:
            vocab_size = embedding.shape[0]
        config = self.params.to_config(vocab_size=vocab_size)
        _refuse_shard(tensors, config)
        known = tensor_names(config)
        unexpected = sorted(tensors.keys() - known)
        if strict and unexpected:
            raise UsageError(f"load_state_dict got names of no Llama tensor: {unexpected[:10]}")
        kept = {name: tensor for name, tensor in tensors.items() if name in known}
        self.params.vocab_size = vocab_size
        self._attach(_single_process_engine(_in_memory(config, kept), self.params))
        return IncompatibleKeys([], unexpected)


def _in_memory(config: ModelConfig, tensors: Mapping[str, Tensor]) -> CheckpointReader:
    stored = {name: StoredTensor.of([MemoryTensor(tensor)]) for name, tensor in tensors.items()}
    return CheckpointReader("memory", Path(), config, stored, ignored={})


def _single_process_engine(reader: CheckpointReader, params: ModelArgs) -> Engine:
    config = EngineConfig(max_seq_len=params.max_seq_len, max_batch_size=params.max_batch_size)
    context = single()
    dtype = resolve_dtype(None, device=context.device, checkpoint=reader.dtype)
    stage, _ = load_stage(reader, config=config, context=context, dtype=dtype)
    return Engine(
        model_config=reader.config,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=dtype),
        dtype=dtype,
    )


def _refuse_shard(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    wq = tensors.get("layers.0.attention.wq.weight")
    expected = (config.n_heads * config.head_dim, config.dim)
    if wq is not None and tuple(wq.shape) != expected:
        raise UsageError(
            f"layers.0.attention.wq.weight has shape {tuple(wq.shape)}, not {expected}: one shard "
            "of several, or another model; Llama.build reads all shards of a checkpoint"
        )


def precompute_freqs_cis(
    dim: int, end: int, theta: float = 10000.0, use_scaled: bool = False
) -> Tensor:
    """Rotations as complex64 (end, dim / 2), for heads of `dim` at positions 0 to end - 1.

    `use_scaled` is Llama 3.1's frequency scaling by 8.
    """
    scaling = RopeScaling() if use_scaled else None
    return torch.complex(*rope_table(inverse_frequencies(dim, theta, scaling), end))


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """`freqs_cis` (seq, dim) as (1, seq, 1, ..., dim), to multiply `x` (batch, seq, ..., dim)."""
    if freqs_cis.shape != (x.shape[1], x.shape[-1]):
        raise UsageError(
            f"freqs_cis {tuple(freqs_cis.shape)} must be dims 1 and -1 of x {tuple(x.shape)}"
        )
    return freqs_cis.view(1, x.shape[1], *[1] * (x.ndim - 3), x.shape[-1])


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """`xq` and `xk` (batch, seq, heads, head_dim) turned pair by pair by `freqs_cis` (seq, pairs).

    Computed in float32, returned in the dtypes given (rotary embedding, Su et al. 2021).
    """
    return _rotate(xq, freqs_cis), _rotate(xk, freqs_cis)


def _rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    pairs = torch.view_as_complex(
        x.float().reshape(*x.shape[:-1], -1, 2)
    )  # (batch, seq, heads, pairs)
    turned = torch.view_as_real(pairs * reshape_for_broadcast(freqs_cis, pairs))
    return turned.flatten(3).type_as(x)


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """(batch, seq, kv_heads, head_dim) with each head `n_rep` times in a row."""
    return torch.repeat_interleave(x, n_rep, dim=2)
