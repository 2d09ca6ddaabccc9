"""Model stages without an engine: filled from full tensors, and run over a pipeline by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llama.config import EngineConfig, ModelConfig
from llama.kvcache.cache import KVCache
from llama.models.decoder import DecoderStage, stage_of
from llama.ops.batch import Batch
from llama.parallel.comm import SingleCommunicator
from llama.parallel.context import ParallelContext
from tests.helpers.batches import NewTokens, make_batch, shuffled_tables
from tests.helpers.fill import fill

BLOCK_SIZE = 4
MAX_POSITIONS = 64


class Place(SingleCommunicator):
    """A place on a larger axis, good for building a layer but not for running it."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self._place = rank, size

    @property
    def rank(self) -> int:
        return self._place[0]

    @property
    def size(self) -> int:
        return self._place[1]


def ready_stage(
    context: ParallelContext, config: ModelConfig, weights: Mapping[str, Tensor], **options: Any
) -> DecoderStage:
    """This rank's stage with its part of `weights`."""
    stage = DecoderStage(
        config,
        stage_of(config, pp_size=context.pp.size, pp_rank=context.pp.rank),
        **{"tp": context.tp, "dtype": torch.float32, "max_positions": MAX_POSITIONS, **options},
    )
    stage.materialize(context.device)
    fill(stage, weights)
    return stage


def ring_blocks(config: ModelConfig) -> int:
    """Blocks of one sequence of at most MAX_POSITIONS tokens."""
    engine = EngineConfig(max_seq_len=MAX_POSITIONS, block_size=BLOCK_SIZE)
    return engine.ring_blocks(config.widest_window)


def make_cache(stage: DecoderStage, *, num_blocks: int) -> KVCache:
    """A cache full of NaN: what is read without having been written shows."""
    weight = next(stage.parameters())
    cache = KVCache(
        stage.stage.layers,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        ring_blocks=ring_blocks(stage.config),
        n_kv_heads=stage.n_local_kv_heads,
        head_dim=stage.config.head_dim,
        dtype=weight.dtype,
        device=weight.device,
    )
    for index in stage.stage.layers:
        for side in cache.layer(index):
            side.fill_(torch.nan)
    return cache


def run_batch(
    context: ParallelContext, stage: DecoderStage, batch: Batch, cache: KVCache
) -> Tensor | None:
    """One step through the whole pipeline; logits where the last stage has them."""
    x = batch.token_ids
    if not context.is_first_stage:
        hidden = torch.empty(batch.n_tokens, stage.config.dim, dtype=torch.float32)
        x = context.pp.recv(hidden, context.pp.rank - 1)
    x = stage(x, batch, cache)
    if context.is_last_stage:
        return stage.logits(x, batch)
    context.pp.send(x, context.pp.rank + 1)
    return None


@torch.inference_mode()
def run_in_steps(
    context: ParallelContext,
    stage: DecoderStage,
    token_ids: list[list[int]],
    cuts: list[list[int]],
) -> list[Tensor] | None:
    """Logits of every token of every sequence, on the last stage's first rank; None elsewhere.

    Step s takes sequence i on to token cuts[s][i], over shuffled blocks.
    """
    ring = ring_blocks(stage.config)
    lengths = [min(len(ids), ring * BLOCK_SIZE) for ids in token_ids]
    num_blocks = sum(lengths) // BLOCK_SIZE + len(lengths) + 2
    tables = shuffled_tables(lengths, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    cache = make_cache(stage, num_blocks=num_blocks)
    done = [0] * len(token_ids)
    found: list[list[Tensor]] = [[] for _ in token_ids]
    for stops in cuts:
        active = [index for index, stop in enumerate(stops) if stop > done[index]]
        sequences = [
            NewTokens(token_ids[index][done[index] : stops[index]], done[index], tables[index])
            for index in active
        ]
        batch = make_batch(sequences, block_size=BLOCK_SIZE, ring_blocks=ring)
        logits = run_batch(context, stage, batch, cache)
        if logits is not None:
            for index, rows in zip(active, logits.split(batch.num_new_tokens), strict=True):
                found[index].append(rows)
        done = stops
    return [torch.cat(rows) for rows in found] if found[0] else None
