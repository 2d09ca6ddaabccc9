"""Choosing tokens from logits: temperature, top-k, nucleus, one draw per row; and the best.

Every function works row by row, so a row's outcome does not depend on the other rows of its batch.
Nothing here is random: the caller brings one uniform number per row. Tokens are ordered by logit,
equal ones by lower id, and a draw inverts the cumulative distribution in that order. On a CPU the
native kernels do it in fp32 with sums in fp64: another token than torch's in fp64 comes of it where
the uniform lies within rounding of the border between two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.ops.kernels import kernels_for

_HEAD_TOKENS = 256
"""Best tokens to look at first: sorting a whole vocabulary takes tens of times longer."""


@dataclass(frozen=True)
class Draws:
    """How to draw from R rows, each field (R,): see `sample`."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    uniform: Tensor

    def __getitem__(self, rows: Tensor) -> Draws:
        return Draws(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.uniform[rows])


def finite_rows(logits: Tensor) -> Tensor:
    """Which rows of `logits` (R, vocab) hold neither NaN nor an infinity: (R,) bool."""
    lowest, highest = torch.aminmax(logits, dim=-1)
    return lowest.isfinite() & highest.isfinite()


def best_token(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of fp32 `logits` (R, vocab) the best id, lowest of equals, (R,) int64, and
    whether all of the row is finite, (R,) bool; without that the id means nothing.
    """
    native = kernels_for(logits)
    if native is None or not _has_dense_fp32_rows(logits):
        return logits.argmax(dim=-1), finite_rows(logits)
    n_rows, vocab_size = logits.shape
    token_ids = torch.empty(n_rows, dtype=torch.int64)
    is_finite = torch.empty(n_rows, dtype=torch.bool)
    native.llama_best_token(
        logits.data_ptr(),
        logits.stride(0),
        n_rows,
        vocab_size,
        token_ids.data_ptr(),
        is_finite.data_ptr(),
    )
    return token_ids, is_finite


def _has_dense_fp32_rows(logits: Tensor) -> bool:
    return logits.dtype == torch.float32 and logits.stride(1) == 1


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """One token id for each row of finite `logits` (R, vocab): (R,) int64.

    The logits are divided by `temperature` (> 0, float64). The `top_k` best tokens (int64, 0 for
    off) stay and are renormalised. Of these a token stays while those before it have together at
    most `top_p` (in (0, 1], float64): Meta's nucleus rule, by which the token that crosses top_p
    stays. `uniform` (in [0, 1), float64) says where in the renormalised rest the drawn token lies.
    """
    native = kernels_for(logits)
    if native is None or not _has_dense_fp32_rows(logits):
        return _sample_in_fp64(logits, draws)
    n_rows, vocab_size = logits.shape
    token_ids = torch.empty(n_rows, dtype=torch.int64)
    columns = (draws.temperature, draws.top_p, draws.top_k, draws.uniform)
    dense = [column.contiguous() for column in columns]
    native.llama_draw(
        logits.data_ptr(),
        logits.stride(0),
        n_rows,
        vocab_size,
        *(column.data_ptr() for column in dense),
        token_ids.data_ptr(),
    )
    return token_ids


def _sample_in_fp64(logits: Tensor, draws: Draws) -> Tensor:
    """`sample` by torch, on any device."""
    vocab_size = logits.shape[-1]
    scaled = logits.double()
    scaled -= logits.amax(dim=-1, keepdim=True)  # before the division, which could overflow
    scaled /= draws.temperature[:, None]
    probs = torch.softmax(scaled, dim=-1)  # (R, vocab)
    values, ids = _ordered(*logits.topk(min(_HEAD_TOKENS, vocab_size)))  # (R, head)
    place, is_enough = _draw(probs.gather(-1, ids), draws, vocab_size=vocab_size)
    tokens = _at(ids, place)  # (R,)
    if ids.shape[-1] == vocab_size:
        return tokens
    # Of several tokens that equal the last one, topk may have left out those with lower ids.
    is_enough &= place < (values > values[:, -1:]).sum(dim=-1)
    if not is_enough.all():
        rest = (~is_enough).nonzero()[:, 0]
        ids = logits[rest].sort(dim=-1, descending=True, stable=True).indices  # (rest, vocab)
        place, _ = _draw(probs[rest].gather(-1, ids), draws[rest], vocab_size=vocab_size)
        tokens[rest] = _at(ids, place)
    return tokens


def best_tokens(logits: Tensor, k: int) -> Tensor:
    """Ids of the `k` highest of each row of `logits` (R, vocab), best first, ties by lower id.

    (R, min(k, vocab)) int64.
    """
    vocab_size = logits.shape[-1]
    k = min(k, vocab_size)
    values, ids = _ordered(*logits.topk(min(k + 1, vocab_size)))
    if 0 < k < vocab_size:
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]  # topk took any of these
        if len(tied):
            ids[tied, :k] = logits[tied].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return ids[:, :k]


def _ordered(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Both (R, n), with equal values by ascending id: topk leaves that order open."""
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _draw(probs: Tensor, draws: Draws, *, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Places of the drawn tokens in `probs` (R, n), the n highest in descending order: (R,) int64.

    Also whether n were enough to tell, (R,) bool; a place where they were not means nothing.
    """
    n = probs.shape[-1]
    upto = probs.cumsum(dim=-1)  # (R, n)
    before = torch.nn.functional.pad(upto[:, :-1], (1, 0))
    is_limited = (draws.top_k > 0) & (draws.top_k < vocab_size)
    limit = torch.where(is_limited, draws.top_k, n).clamp(max=n)
    mass = torch.where(is_limited, _at(upto, limit - 1), 1.0)  # of the top_k tokens
    is_nucleus = draws.top_p < 1
    cut = torch.where(is_nucleus, draws.top_p * mass, torch.inf)
    kept = (torch.arange(n, device=probs.device) < limit[:, None]) & (before <= cut[:, None])
    n_kept = (kept & (probs > 0)).sum(dim=-1)
    mass = torch.where(is_nucleus, _at(upto, n_kept - 1), mass)
    place = (upto <= (draws.uniform * mass)[:, None]).sum(dim=-1)
    is_enough = torch.where(is_limited, draws.top_k <= n, ~is_nucleus | (n_kept < n))
    return torch.minimum(place, n_kept - 1), is_enough


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values[r, places[r]] of every row r: (R,)."""
    return values.gather(-1, places[:, None])[:, 0]
