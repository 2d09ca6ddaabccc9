"""One pipeline stage of a decoder: the skeleton that every architecture shares.

A stage builds only what it owns: the embedding on the first, norm and head on the last, and its
layers under their global index, so a parameter has the same name on every layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.errors import UsageError
from llama.kvcache.cache import KVCache
from llama.layers.attention import Step
from llama.layers.embedding import ParallelLMHead, PositionEmbedding, VocabParallelEmbedding
from llama.layers.parameter import materialize, pieces
from llama.models import MODELS
from llama.models.architecture import Architecture
from llama.models.record import Recorder
from llama.models.rotary import Rotary
from llama.ops.attention import ATTENTION, AttentionBackend
from llama.ops.batch import Batch
from llama.parallel.comm import Communicator, SingleCommunicator
from llama.parallel.layout import stage_layers
from llama.parallel.shard import head_shard
from llama.quant.base import DENSE, LinearMethod
from llama.registry import resolve

_HEAD_COST = 0.25
"""Time of a head's weight beside a layer's: between none, in a prompt, and 0.7, in a decode, nearer
the prompt, where a cut for the other costs more (measured in docs/performance.md)."""


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
    """Every stage, all balanced by the time of a step, not by memory: a lookup costs the first
    stage nothing, so with its table it may be the largest.

    Raises UsageError when there are more stages than layers.
    """
    layers = stage_layers(
        [config.layer_parameters] * config.n_layers,
        pp_size,
        last_cost=config.embedding_parameters * _HEAD_COST,
    )
    return tuple(
        Stage(own, is_first=pp_rank == 0, is_last=pp_rank == pp_size - 1)
        for pp_rank, own in enumerate(layers)
    )


def stage_windows(
    config: ModelConfig, stage: Stage, *, max_positions: int
) -> tuple[int | None, ...]:
    """The sliding window of each local layer; None for one that no sequence outgrows, too."""
    windows = (config.windows[index] for index in stage.layers)
    return tuple(
        None if window is None or window >= max_positions else window for window in windows
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

    `max_positions` bounds every token's position; `attention` is a name in ATTENTION; `method` is
    how linear layers, the head among them, hold their weights. Raises UsageError for sizes that
    tp.size or `method` cannot cut and for more positions than were learned, UnknownNameError for an
    unknown name.
    """

    def __init__(
        self,
        config: ModelConfig,
        stage: Stage,
        *,
        tp: Communicator,
        dtype: torch.dtype,
        max_positions: int,
        attention: str = "sdpa",
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        architecture: Architecture = resolve(MODELS, config.architecture, kind="architecture")
        self.config = config
        self.stage = stage
        self._tp = tp
        self.attention = attention
        self._attention: AttentionBackend = resolve(ATTENTION, attention, kind="attention backend")
        self._windows = stage_windows(config, stage, max_positions=max_positions)
        learned = (
            _learned_positions(config, max_positions) if architecture.learned_positions else None
        )
        self.rotary = Rotary(config, max_positions) if learned is None else None
        self.tok_embeddings: VocabParallelEmbedding | None = None
        self.pos_embeddings: PositionEmbedding | None = None
        self.norm: nn.Module | None = None
        self.output: ParallelLMHead | None = None
        if stage.is_first:
            self._add_embeddings(learned, dtype=dtype)
        self.layers = nn.ModuleDict(
            {
                str(index): architecture.make_block(config, tp=tp, dtype=dtype, method=method)
                for index in stage.layers
            }
        )
        if stage.is_last:
            self.norm = architecture.make_norm(config, name="norm", dtype=dtype)
            self._add_head(dtype, method)

    def _add_embeddings(self, learned_positions: int | None, *, dtype: torch.dtype) -> None:
        config = self.config
        self.tok_embeddings = VocabParallelEmbedding(
            config.vocab_size, config.dim, tp=self._tp, name="tok_embeddings", dtype=dtype
        )
        if learned_positions is not None:
            self.pos_embeddings = PositionEmbedding(
                learned_positions, config.dim, name="pos_embeddings", dtype=dtype
            )

    def _add_head(self, dtype: torch.dtype, method: LinearMethod) -> None:
        config = self.config
        self.output = ParallelLMHead(
            config.vocab_size, config.dim, tp=self._tp, name="output", dtype=dtype, method=method
        )
        # else the head has a copy of its own, beside the embedding that no method changes
        if config.tied_embeddings and self.tok_embeddings is not None and method.is_plain:
            self.output.weight = self.tok_embeddings.weight

    def materialize(self, device: torch.device) -> None:
        """Memory for the parameters, and the RoPE table, on `device`."""
        materialize(self, device)
        if self.rotary is not None:
            self.rotary.materialize(device)

    def forward(
        self, x: Tensor, batch: Batch, cache: KVCache, *, record: Recorder | None = None
    ) -> Tensor:
        """Hidden states (N, dim) after the last local layer, before the final norm.

        x is token ids (N,) on the first stage, the stage before's hidden states (N, dim) elsewhere.
        `record` collects what happens on the way.
        """
        hidden = x if self.tok_embeddings is None else self.tok_embeddings(x)
        if self.pos_embeddings is not None:
            hidden = hidden + self.pos_embeddings(batch.positions)
        record = record or Recorder()
        steps = self._steps(batch, record.backend(self._attention), dtype=hidden.dtype)
        layers = zip(self.stage.layers, self._windows, self.layers.values(), strict=True)
        for index, window, block in layers:
            record.enter_layer(index, hidden)
            hidden = block(hidden, steps[window], *cache.layer(index))
        if self.norm is not None:
            record.keep_normed(hidden, self.norm)
        return hidden

    def _steps(
        self, batch: Batch, backend: AttentionBackend, *, dtype: torch.dtype
    ) -> dict[int | None, Step]:
        """By window: what the layers that have it share."""
        rotate = None if self.rotary is None else self.rotary(batch)
        return {
            window: Step(rotate, backend(batch, dtype=dtype, window=window))
            for window in set(self._windows)
        }

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Last stage: logits (R, vocab_size) fp32 of batch.logit_rows on tp rank 0, else None."""
        assert self.norm is not None and self.output is not None
        logits: Tensor | None = self.output(self.norm(hidden.index_select(0, batch.logit_rows)))
        return logits

    def target_logprobs(self, hidden: Tensor, batch: Batch, n_words: int) -> Tensor:
        """Last stage: logprobs (T,) fp32 of batch.targets among the first `n_words` ids, on every
        tp rank. NaN where a logit is not finite.
        """
        assert self.norm is not None and self.output is not None
        if not len(batch.target_rows):
            return torch.empty(0, dtype=torch.float32, device=hidden.device)
        scored = self.norm(hidden.index_select(0, batch.target_rows))
        return self.output.logprobs(scored, batch.targets, n_words)

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


def _learned_positions(config: ModelConfig, max_positions: int) -> int:
    learned = config.max_positions
    if learned is None:
        raise UsageError("this model's positions are learned, but its config says not how many")
    if max_positions > learned:
        raise UsageError(
            f"max_seq_len {max_positions} exceeds the {learned} positions that this model learned; "
            f"lower it to at most {learned}"
        )
    return learned
