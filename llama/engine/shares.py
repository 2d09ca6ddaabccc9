"""How much one plan takes when several may be in flight, so that no pipeline stage runs dry.

Decodes and prompts are dealt apart: a micro-batch that got all the prompts would hold up every
other one. A prompt keeps a pipeline busy for k / (k + stages - 1) of its k chunks, so prompts are
cut into many, but not into less than a stage computes well. Knows numbers only.
"""

from __future__ import annotations

MIN_CHUNK_TOKENS = 128
"""Prompts are not cut smaller than this only to keep every stage busy."""
CHUNKS_PER_STAGE = 16


def fair_share(total: int, out: int, *, plans: int, plans_out: int) -> int:
    """Of `total` items, `out` of which are in flight, those of the next plan; at least 1.

    `plans` may be in flight and `plans_out` of them are, so one more may leave.
    """
    of_what_is_left = _ceil_div(total - out, plans - plans_out)
    return max(1, min(_ceil_div(total, plans), of_what_is_left))


def chunk_share(prompt_tokens: int, *, plans: int) -> int:
    """Prompt tokens of one plan, when unfinished prompts have `prompt_tokens` in all."""
    return max(MIN_CHUNK_TOKENS, _ceil_div(prompt_tokens, CHUNKS_PER_STAGE * plans))


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
