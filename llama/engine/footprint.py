"""What a layout costs every one of its ranks, from a config alone: no files, no GPU, no groups.

Weights and KV cache are exact: the very modules are made, without memory, and their bytes counted.
The activations of the largest step are computed in `activations`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ModelConfig
from llama.engine.activations import StepSizes, activation_bytes, prompt_logprobs_bytes
from llama.engine.memory import wanted_blocks
from llama.engine.traffic import Traffic, bytes_to_read, traffic_of
from llama.errors import UnknownNameError
from llama.kvcache.cache import block_bytes
from llama.layers.parameter import pieces
from llama.models import MODELS
from llama.models.decoder import DecoderStage, Stage, stage_windows, stages
from llama.ops.attention.sdpa import most_gathered_tokens, repeats_kv
from llama.parallel.comm import SingleCommunicator
from llama.parallel.layout import ParallelLayout
from llama.parallel.shard import HeadShard, ffn_shard, head_shard
from llama.quant.choose import linear_method


@dataclass(frozen=True)
class Workload:
    """What is to run: a model, the engine's sizes, the compute dtype, and on what."""

    model: ModelConfig
    config: EngineConfig
    dtype: torch.dtype
    device_type: str = "cpu"

    @property
    def ring_blocks(self) -> int:
        """Most KV blocks of one sequence."""
        return self.config.ring_blocks(self.model.widest_window)


@dataclass(frozen=True)
class RankFootprint:
    """One rank's share. `weight_bytes` are its parameters and RoPE tables.

    `layers`, `heads` and `kv_heads` are global indices. `kv_cache_bytes` is what `num_blocks`
    blocks take that a full batch needs, `block_bytes` one of them. `prompt_logprobs_bytes` comes on
    top of the activations while a request asks for those of a long prompt.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    layers: range
    heads: range
    kv_heads: range
    weight_bytes: int
    block_bytes: int
    num_blocks: int
    activation_bytes: int
    prompt_logprobs_bytes: int
    traffic: Traffic

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def step_bytes(self) -> int:
        """What a step may take, whatever is asked; the KV cache leaves it free."""
        return self.activation_bytes + self.prompt_logprobs_bytes

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.activation_bytes


@dataclass(frozen=True)
class Footprint:
    """Every rank of one replica."""

    layout: ParallelLayout
    ranks: tuple[RankFootprint, ...]

    @property
    def largest(self) -> RankFootprint:
        return max(self.ranks, key=lambda rank: rank.total_bytes)


class _Place(SingleCommunicator):
    """A place on an axis, with nobody there: for modules that are made and never run."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size


def footprint(work: Workload, layout: ParallelLayout) -> Footprint:
    """What each rank of one replica in `layout` takes.

    Raises UsageError for a layout that the model cannot be cut into, UnknownNameError for an
    architecture that has no model.
    """
    cut = stages(work.model, pp_size=layout.pp_size)
    weight_bytes: dict[tuple[object, ...], int] = {}
    ranks = []
    for rank in range(layout.replica_size):
        at = layout.coordinates(rank)
        stage = cut[at.pp_rank]
        sizes = step_sizes(work, layout, rank, stage)
        widths = (sizes.q_width, sizes.kv_width, sizes.ffn_width)
        # a quantised slice is as wide as the groups that it meets, which depends on where it begins
        begin = at.tp_rank if work.config.quantize else None
        alike = (*widths, begin, len(stage.layers), stage.is_first, stage.is_last)
        if alike not in weight_bytes:  # ranks that hold as much of everything are counted once
            weight_bytes[alike] = stage_bytes(empty_stage(work, layout, rank, stage))
        ranks.append(_rank(work, layout, rank, stage, sizes, weight_bytes[alike]))
    return Footprint(layout, tuple(ranks))


def _rank(
    work: Workload,
    layout: ParallelLayout,
    rank: int,
    stage: Stage,
    sizes: StepSizes,
    weight_bytes: int,
) -> RankFootprint:
    at, own = layout.coordinates(rank), _heads(work.model, layout, rank)
    return RankFootprint(
        rank=rank,
        pp_rank=at.pp_rank,
        tp_rank=at.tp_rank,
        layers=stage.layers,
        heads=own.heads,
        kv_heads=own.kv_heads,
        weight_bytes=weight_bytes,
        block_bytes=block_bytes(
            len(stage.layers),
            block_size=work.config.block_size,
            n_kv_heads=len(own.kv_heads),
            head_dim=work.model.head_dim,
            dtype=work.dtype,
        ),
        num_blocks=wanted_blocks(work.config, ring_blocks=work.ring_blocks),
        activation_bytes=activation_bytes(sizes),
        prompt_logprobs_bytes=prompt_logprobs_bytes(sizes),
        traffic=traffic_of(
            n_layers=len(stage.layers),
            dim=work.model.dim,
            vocab_size=work.model.vocab_size,
            itemsize=work.dtype.itemsize,
            tp_size=layout.tp_size,
            is_first=stage.is_first,
            is_last=stage.is_last,
        ),
    )


def empty_stage(work: Workload, layout: ParallelLayout, rank: int, stage: Stage) -> DecoderStage:
    """The modules of `rank`, which is one of `stage`, on the meta device."""
    if work.model.architecture not in MODELS:
        raise UnknownNameError(
            f"architecture {work.model.architecture} has no model; known models: "
            f"{', '.join(MODELS)}"
        )
    return DecoderStage(
        work.model,
        stage,
        tp=_Place(layout.coordinates(rank).tp_rank, layout.tp_size),
        dtype=work.dtype,
        max_positions=work.config.max_seq_len,
        method=linear_method(work.config.quantize),
    )


def stage_bytes(stage: DecoderStage) -> int:
    """Parameters, each once however many modules share it, and tables of an empty stage."""
    meta = torch.device("meta")
    with meta:  # tables are computed where tensors are made by default: here, nowhere
        stage.materialize(meta)
    return sum(tensor.nbytes for tensor in (*stage.parameters(), *stage.buffers()))


def step_sizes(work: Workload, layout: ParallelLayout, rank: int, stage: Stage) -> StepSizes:
    """The widths of `rank`, which is one of `stage`, and its largest step."""
    model, config, at = work.model, work.config, layout.coordinates(rank)
    own = _heads(model, layout, rank)
    n_cached = config.max_batch_size * config.max_seq_len
    n_tokens = min(config.max_num_batched_tokens, n_cached)
    windows = frozenset(stage_windows(model, stage, max_positions=config.max_seq_len))
    ffn_width = len(ffn_shard(model.ffn_dim, tp_size=layout.tp_size, tp_rank=at.tp_rank))
    return StepSizes(
        n_tokens=n_tokens,
        n_sequences=min(config.max_batch_size, n_tokens),
        max_seq_len=config.max_seq_len,
        windows=windows,
        n_grouped=min(most_gathered_tokens(work.device_type), n_cached),
        repeats_kv=repeats_kv(work.device_type),
        dim=model.dim,
        head_dim=model.head_dim,
        q_width=len(own.heads) * model.head_dim,
        kv_width=len(own.kv_heads) * model.head_dim,
        ffn_width=ffn_width,
        vocab_size=model.vocab_size,
        itemsize=work.dtype.itemsize,
        architecture=model.architecture,
        rope_style=None if model.position_parameters else model.rope_style,
        has_bias=model.attention_bias or model.mlp_bias,
        n_layers=len(stage.layers),
        tp_size=layout.tp_size,
        tp_rank=at.tp_rank,
        pp_size=layout.pp_size,
        pp_rank=at.pp_rank,
        workspace_bytes=_workspace_bytes(work, layout, n_tokens=n_tokens, own=own, ffn=ffn_width),
    )


def _workspace_bytes(
    work: Workload, layout: ParallelLayout, *, n_tokens: int, own: HeadShard, ffn: int
) -> int:
    """Of the largest product of a rank that has these heads and feed-forward columns."""
    model, method = work.model, linear_method(work.config.quantize)
    heads, kv_heads = len(own.heads) * model.head_dim, len(own.kv_heads) * model.head_dim
    n_logits = min(work.config.max_batch_size, n_tokens)
    products = (
        (n_tokens, model.dim, heads + 2 * kv_heads),
        (n_tokens, heads, model.dim),
        (n_tokens, model.dim, 2 * ffn),
        (n_tokens, ffn, model.dim),
        (n_logits, model.dim, -(-model.vocab_size // layout.tp_size)),
    )
    return max(
        method.workspace_bytes(
            n_rows=rows, n_inputs=ins, n_outputs=outs, itemsize=work.dtype.itemsize
        )
        for rows, ins, outs in products
    )


def read_bytes(reader: CheckpointReader, work: Workload, layout: ParallelLayout) -> list[int]:
    """Bytes that each rank of a replica takes from the files, all of them on one host."""
    needs = []
    cut = stages(work.model, pp_size=layout.pp_size)
    for rank in range(layout.replica_size):
        stage = empty_stage(work, layout, rank, cut[layout.coordinates(rank).pp_rank])
        needs.append([(piece, name) for _, piece, name in pieces(stage)])
    return bytes_to_read(reader, needs)


def _heads(model: ModelConfig, layout: ParallelLayout, rank: int) -> HeadShard:
    return head_shard(
        model.n_heads,
        model.n_kv_heads,
        tp_size=layout.tp_size,
        tp_rank=layout.coordinates(rank).tp_rank,
    )
