"""One pipeline stage of a decoder: the skeleton that every architecture shares.

A stage builds only what it owns: the embedding on the first, norm and head on the last, and its
layers under their global index, so a parameter has the same name on every layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.errors import UsageError
from llama.kvcache.cache import KVCache
from llama.layers.attention import Step
from llama.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from llama.layers.parameter import materialize, pieces
from llama.models import MODELS
from llama.models.architecture import Architecture
from llama.ops.attention import ATTENTION, AttentionBackend
from llama.ops.batch import Batch
from llama.ops.rope import apply_rope, inverse_frequencies, rope_table
from llama.parallel.comm import Communicator, SingleCommunicator
from llama.parallel.layout import stage_layers
from llama.parallel.shard import head_shard
from llama.registry import resolve


@dataclass(frozen=True)
class Stage:
    """What one pipeline rank owns: `layers` are global indices."""

    layers: range
    is_first: bool
    is_last: bool


def stage_of(config: ModelConfig, *, pp_size: int, pp_rank: int) -> Stage:
    """The stage of `pp_rank`, one of `stages`."""
    return stages(config, pp_size=pp_size)[pp_rank]


def stages(config: ModelConfig, *, pp_size: int) -> tuple[Stage, ...]:
    """Every stage, all balanced by parameters with embedding and head counted in.

    Raises UsageError when there are more stages than layers.
    """
    layers = stage_layers(
        [config.layer_parameters] * config.n_layers,
        pp_size,
        first_cost=config.embedding_parameters,
        last_cost=config.embedding_parameters + config.dim,
    )
    return tuple(
        Stage(own, is_first=pp_rank == 0, is_last=pp_rank == pp_size - 1)
        for pp_rank, own in enumerate(layers)
    )


def tensor_names(config: ModelConfig) -> frozenset[str]:
    """Names of all tensors that a whole model of this config needs, a tied head's included: a
    checkpoint reader shows it under its own name, and a stage without the embedding asks for it.
    """
    whole = DecoderStage(
        replace(config, tied_embeddings=False),
        stage_of(config, pp_size=1, pp_rank=0),
        tp=SingleCommunicator(),
        dtype=torch.float32,
        max_positions=1,
    )
    return frozenset(name for _, _, name in pieces(whole))


class DecoderStage(nn.Module):
    """The layers of one stage, cut over `tp`. Made on the meta device; see `materialize`.

    `max_positions` bounds every token's position; `attention` is a name in ATTENTION. Raises
    UsageError for sizes that tp.size cannot cut and for a sliding window below max_positions,
    UnknownNameError for an unknown name.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        stage: Stage,
        *,
        tp: Communicator,
        dtype: torch.dtype,
        max_positions: int,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        architecture: Architecture = resolve(MODELS, config.architecture, kind="architecture")
        _check_windows(config, max_positions)
        self.config = config
        self.stage = stage
        self._tp = tp
        self._max_positions = max_positions
        self._attention: AttentionBackend = resolve(ATTENTION, attention, kind="attention backend")
        self.tok_embeddings: VocabParallelEmbedding | None = None
        self.norm: nn.Module | None = None
        self.output: ParallelLMHead | None = None
        if stage.is_first:
            self.tok_embeddings = VocabParallelEmbedding(
                config.vocab_size, config.dim, tp=tp, name="tok_embeddings", dtype=dtype
            )
        self.layers = nn.ModuleDict(
            {
                str(index): architecture.make_block(config, tp=tp, dtype=dtype)
                for index in stage.layers
            }
        )
        if stage.is_last:
            self.norm = architecture.make_norm(config, name="norm", dtype=dtype)
            self.output = ParallelLMHead(
                config.vocab_size, config.dim, tp=tp, name="output", dtype=dtype
            )
            if config.tied_embeddings and self.tok_embeddings is not None:
                self.output.weight = self.tok_embeddings.weight

    def materialize(self, device: torch.device) -> None:
        """Memory for the parameters, and the RoPE table, on `device`."""
        materialize(self, device)
        frequencies = inverse_frequencies(
            self.config.head_dim, self.config.rope_theta, self.config.rope_scaling
        )
        cos, sin = rope_table(frequencies, self._max_positions)
        self.register_buffer("rope_cos", cos.to(device), persistent=False)
        self.register_buffer("rope_sin", sin.to(device), persistent=False)

    def forward(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states (N, dim) after the last local layer, before the final norm.

        x is token ids (N,) on the first stage, the stage before's hidden states (N, dim) elsewhere.
        """
        hidden = x if self.tok_embeddings is None else self.tok_embeddings(x)
        step = self._step(batch, dtype=hidden.dtype)
        for index, block in zip(self.stage.layers, self.layers.values(), strict=True):
            hidden = block(hidden, step, *cache.layer(index))
        return hidden

    def _step(self, batch: Batch, *, dtype: torch.dtype) -> Step:
        cos = self.rope_cos.index_select(0, batch.positions)  # (N, head_dim / 2)
        sin = self.rope_sin.index_select(0, batch.positions)
        rotate = partial(apply_rope, cos=cos, sin=sin, style=self.config.rope_style)
        return Step(batch.slot_mapping, rotate, self._attention(batch, dtype=dtype))

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Last stage: logits (R, vocab_size) fp32 of batch.logit_rows on tp rank 0, else None."""
        assert self.norm is not None and self.output is not None
        logits: Tensor | None = self.output(self.norm(hidden.index_select(0, batch.logit_rows)))
        return logits

    @property
    def n_local_kv_heads(self) -> int:
        """KV heads of this rank, copies counted."""
        own = head_shard(
            self.config.n_heads,
            self.config.n_kv_heads,
            tp_size=self._tp.size,
            tp_rank=self._tp.rank,
        )
        return len(own.kv_heads)


def _check_windows(config: ModelConfig, max_positions: int) -> None:
    # A window that no sequence outgrows hides nothing, so full attention is exact.
    narrowest = min((window for window in config.windows if window), default=max_positions)
    if narrowest < max_positions:
        raise UsageError(
            f"sliding windows are not run yet, and this model's is {narrowest} tokens: "
            f"lower max_seq_len from {max_positions} to {narrowest}"
        )
