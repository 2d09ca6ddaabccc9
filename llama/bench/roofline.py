"""The most tokens per second that memory or arithmetic allow a contestant."""

from __future__ import annotations

from collections.abc import Mapping

from llama.bench.contestant import Contestant
from llama.bench.limits import Limits
from llama.bench.shapes import ITEM_BYTES, Shape
from llama.bench.work import Work

_BITS: Mapping[str, float] = {"float32": 32, "bfloat16": 16, "float16": 16, "q8_0": 8.5}
"""A block of Q8_0 is 32 values of a byte each and one 16-bit scale."""


def limit(
    contestant: Contestant,
    work: Work,
    shape: Shape,
    limits: Limits,
    *,
    read_bytes: float | None = None,
) -> float | None:
    """Tokens per second; None for works that mix both.

    Decoding reads all weights of the products (`read_bytes`, or what the format says) and the keys
    and values once a step. A prompt costs its operations; they are counted against float32 products
    whatever is stored, since that is what the machine was asked for.
    """
    if work.kind == "decode":
        weights = read_bytes or shape.product_parameters * _BITS[contestant.stored] / 8
        item_bytes = ITEM_BYTES.get(contestant.dtype, 2)
        if contestant.engine == "llama.cpp":  # its cache is 16-bit unless it is told otherwise
            item_bytes = 2
        cached = shape.kv_bytes(int(work.mean_context_tokens), item_bytes=item_bytes)
        read = limits.read_gb_s[_threads(contestant, limits.read_gb_s)]
        return work.batch * read * 1e9 / (weights + cached)
    if work.kind == "prefill":
        flop = work.batch * shape.prompt_flop(work.prompt_tokens)
        matmul = limits.matmul_gflop_s[_threads(contestant, limits.matmul_gflop_s)]
        return work.batch * work.prompt_tokens * matmul * 1e9 / flop
    return None


def _threads(contestant: Contestant, measured: Mapping[int, float]) -> int:
    """Threads of all its processes, as far as the machine has cores.

    One process of several ranks that wait for each other, as stages do for one sequence, is still
    held against all of them.
    """
    return min(contestant.n_threads * contestant.n_ranks, max(measured))
