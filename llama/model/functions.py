"""The functions of Meta's model file, in its shapes. Nothing here uses them."""

from __future__ import annotations

import torch
from torch import Tensor

from llama.config import RopeScaling
from llama.errors import UsageError
from llama.ops.rope import inverse_frequencies, rope_table


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
