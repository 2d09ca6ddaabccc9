"""A forward pass as its caller sees it: what the ranks have in parts comes whole to all of them.

Layer by layer, so that a rank needs little more memory than its own part and the whole answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.config import ModelConfig
from llama.engine.plan import BatchPlan
from llama.engine.runner import ModelRunner
from llama.models.decoder import stages
from llama.models.record import Recorder
from llama.parallel.comm import Communicator
from llama.parallel.context import ParallelContext
from llama.parallel.liveness.whereabouts import Phase
from llama.parallel.shard import head_shard


class ModelOutput(NamedTuple):
    """One forward pass in float32; None is what was not asked for.

    `logits` (batch, seq, vocab_size). `hidden_states`: n_layers + 1 tensors (batch, seq, dim), what
    enters each layer (the first is the embedding), and last what leaves the final norm.
    `attentions`: one tensor (batch, n_heads, seq, context) a layer. The context is all positions up
    to the last new one; a query's weights sum to 1, with 0 for what it does not see.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def forward_pass(runner: ModelRunner, plan: BatchPlan, *, record: Recorder) -> ModelOutput:
    """Run a plan of sequences with equally many new tokens; the output is on the CPU of every rank.

    Collective over the replica.
    """
    with runner.context.whereabouts.during(Phase.STEP, "forward"):
        return _run_and_share(runner, plan, record=record)


def _run_and_share(runner: ModelRunner, plan: BatchPlan, *, record: Recorder) -> ModelOutput:
    config, context = runner.stage.config, runner.context
    n_rows, n_new = len(plan.sequences), len(plan.sequences[0].token_ids)
    last = context.layout.pp_size - 1
    layer_stages = [
        pp_rank
        for pp_rank, stage in enumerate(stages(config, pp_size=context.layout.pp_size))
        for _ in stage.layers
    ]
    hidden_states, attentions = None, None
    logits = runner.logits(plan, record=record)
    whole = _share(iter([logits]), (n_rows, n_new, config.vocab_size), [last], context)
    if record.hidden_states is not None:
        hidden = iter(record.hidden_states)
        hidden_states = _share(hidden, (n_rows, n_new, config.dim), [*layer_stages, last], context)
    if record.attentions is not None:
        weights = (_all_heads(local, config, context.tp) for local in record.attentions)
        shape = (n_rows, config.n_heads, n_new, plan.sequences[0].start + n_new)
        attentions = _share(weights, shape, layer_stages, context)
    runner.flush()
    return ModelOutput(whole[0], hidden_states, attentions)


def _share(
    own: Iterator[Tensor | None],
    shape: tuple[int, ...],
    pp_ranks: Sequence[int],
    context: ParallelContext,
) -> tuple[Tensor, ...]:
    """One tensor of `shape` for each of `pp_ranks`: the next that this stage's tp rank 0 has."""
    shared = []
    for pp_rank in pp_ranks:
        out = torch.empty(shape, dtype=torch.float32)
        if pp_rank == context.coordinates.pp_rank:
            mine = next(own)
            if mine is not None:
                out.copy_(mine.view(shape))
        context.replica.broadcast(out, src=pp_rank * context.layout.tp_size)
        shared.append(out)
    return tuple(shared)


def _all_heads(weights: Sequence[Tensor], config: ModelConfig, tp: Communicator) -> Tensor | None:
    """(batch, n_heads, seq, context) on tp rank 0, from all ranks' (heads, seq, context) a row."""
    counts = [
        len(head_shard(config.n_heads, config.n_kv_heads, tp_size=tp.size, tp_rank=rank).heads)
        for rank in range(tp.size)
    ]
    most = max(counts)
    local = torch.stack(list(weights))  # (batch, local heads, seq, context)
    local = F.pad(local, (0, 0, 0, 0, 0, most - local.shape[1]))
    gathered = tp.gather(local, dst=0, dim=1)  # (batch, tp size · most, seq, context)
    if gathered is None:
        return None
    parts = [gathered[:, rank * most :][:, :count] for rank, count in enumerate(counts)]
    return torch.cat(parts, dim=1)
