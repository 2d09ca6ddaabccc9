"""How a plan is shown: tables for people, JSON with exact bytes for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.wording import sized
from llama.cli.table import print_table
from llama.engine.choose import Choice, Option
from llama.engine.footprint import RankFootprint, Workload, read_bytes

_RANK_COLUMNS = (
    "rank",
    "stage",
    "layers",
    "heads",
    "KV heads",
    "weights",
    "KV cache",
    "activations",
    "total",
    "reads",
    "collectives/token",
    "bytes/token",
)
_OPTION_COLUMNS = ("ranks", "tp", "pp", "fits", "largest rank", "weights", "of", "against it")
_NOT_COUNTED = "not counted: Python and torch themselves, and a GPU's context and NCCL buffers"


def print_choice(
    reader: CheckpointReader, work: Workload, choice: Choice, *, as_json: bool
) -> None:
    """One layout, rank by rank."""
    option, found = choice.option, choice.option.footprint
    assert found is not None
    reads = read_bytes(reader, work, choice.layout)
    if as_json:
        ranks = [_rank_facts(rank, n) for rank, n in zip(found.ranks, reads, strict=True)]
        facts = _work_facts(work) | _option_facts(option)
        print(json.dumps({**facts, "reason": choice.reason, "ranks": ranks}, indent=2))
        return
    print(f"{choice.reason}\n{_work_text(work)}\n")
    print_table(
        _RANK_COLUMNS, [_rank_row(rank, n) for rank, n in zip(found.ranks, reads, strict=True)]
    )
    print(f"\n{_verdict(option)}")
    if extra := max(rank.prompt_logprobs_bytes for rank in found.ranks):
        print(f"a step that gives prompt_logprobs may take {sized(extra)} more")
    print(_NOT_COUNTED)


def print_options(work: Workload, options: Sequence[Option], *, as_json: bool) -> None:
    """Every layout, a line for each."""
    if as_json:
        facts = {**_work_facts(work), "layouts": [_option_facts(option) for option in options]}
        print(json.dumps(facts, indent=2))
        return
    print(f"{_work_text(work)}\n")
    print_table(_OPTION_COLUMNS, [_option_row(option) for option in options])


def _work_text(work: Workload) -> str:
    config = work.config
    weights = f" with {config.quantize} weights" if config.quantize else ""
    return (
        f"{config.max_batch_size} sequences of {config.max_seq_len} tokens, steps of at most "
        f"{config.max_num_batched_tokens}, {_dtype(work)}{weights} on {work.device_type}"
    )


def _verdict(option: Option) -> str:
    fit = option.fit
    assert fit is not None
    have = f"each rank has {sized(fit.memory_bytes)}"
    if fit.is_full:
        return f"fits: {have}"
    if fit.runs:
        return (
            f"fits with a smaller KV cache: {have}, which leaves room for {fit.num_blocks} of the "
            f"{fit.wanted_blocks} KV blocks of a full batch; long batches will wait"
        )
    return f"does not fit: {have}, {sized(fit.short_bytes)} too little on rank {fit.poorest_rank}"


def _rank_row(rank: RankFootprint, read_bytes: int) -> list[str]:
    return [
        f"{rank.rank}",
        f"{rank.pp_rank}",
        _span(rank.layers),
        _span(rank.heads),
        _span(rank.kv_heads),
        sized(rank.weight_bytes),
        sized(rank.kv_cache_bytes),
        sized(rank.activation_bytes),
        sized(rank.total_bytes),
        sized(read_bytes),
        f"{rank.traffic.collectives}",
        f"{rank.traffic.total_bytes:,}",
    ]


def _option_row(option: Option) -> list[str]:
    layout, fit, found = option.layout, option.fit, option.footprint
    sizes = [f"{layout.world_size}", f"{layout.tp_size}", f"{layout.pp_size}"]
    if fit is None or found is None:
        return [*sizes, "refused", "", "", "", option.refused]
    largest = found.largest
    return [
        *sizes,
        "yes" if fit.is_full else "in part" if fit.runs else "no",
        sized(largest.total_bytes),
        sized(largest.weight_bytes),
        sized(fit.memory_bytes),
        option.against,
    ]


def _work_facts(work: Workload) -> dict[str, Any]:
    config = work.config
    return {
        "max_seq_len": config.max_seq_len,
        "max_batch_size": config.max_batch_size,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "memory_fraction": config.memory_fraction,
        "dtype": _dtype(work),
        "quantize": config.quantize,
        "device": work.device_type,
    }


def _option_facts(option: Option) -> dict[str, Any]:
    layout, fit, found = option.layout, option.fit, option.footprint
    facts: dict[str, Any] = {"tp_size": layout.tp_size, "pp_size": layout.pp_size}
    if fit is None or found is None:
        return {**facts, "fits": False, "refused": option.refused}
    return {
        **facts,
        "fits": fit.runs,
        "fits_full_batch": fit.is_full,
        "memory_bytes": fit.memory_bytes,
        "short_bytes": fit.short_bytes,
        "num_blocks": fit.num_blocks,
        "wanted_blocks": fit.wanted_blocks,
        "largest_rank_bytes": found.largest.total_bytes,
        "against": option.against,
    }


def _rank_facts(rank: RankFootprint, read_bytes: int) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "pp_rank": rank.pp_rank,
        "tp_rank": rank.tp_rank,
        "layers": [rank.layers.start, rank.layers.stop],
        "heads": [rank.heads.start, rank.heads.stop],
        "kv_heads": [rank.kv_heads.start, rank.kv_heads.stop],
        "weight_bytes": rank.weight_bytes,
        "block_bytes": rank.block_bytes,
        "kv_cache_bytes": rank.kv_cache_bytes,
        "activation_bytes": rank.activation_bytes,
        "prompt_logprobs_bytes": rank.prompt_logprobs_bytes,
        "total_bytes": rank.total_bytes,
        "read_bytes": read_bytes,
        "collectives_per_token": rank.traffic.collectives,
        "bytes_per_token": rank.traffic.total_bytes,
    }


def _span(indices: range) -> str:
    """Global indices, both ends included."""
    return f"{indices.start}" if len(indices) == 1 else f"{indices.start}-{indices.stop - 1}"


def _dtype(work: Workload) -> str:
    return str(work.dtype).removeprefix("torch.")
