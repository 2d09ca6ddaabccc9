"""The ragged batch: what one step computes, as device tensors. Every op and layer reads this form.

Prefill, a chunk of it and decode differ only in how many new tokens a sequence brings. Tokens of
all sequences lie one after the other, without padding. Who builds a Batch (from a plan, or for the
Meta-style forward) is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N new tokens of S sequences.

    `token_ids` (N,) int64. `positions` (N,) int64, the place of each token in its sequence.
    `slot_mapping` (N,) int64, where each token's K and V go in the flattened cache:
    block · block_size + offset. `logit_rows` (R,) int64, the tokens whose logits are wanted.

    Host integers, one per sequence: `num_new_tokens`, `context_lens` (all tokens up to and
    including the new ones) and `block_tables` (its blocks, in token order). `cu_seqlens` (S + 1,)
    are the running sums of num_new_tokens from 0.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    logit_rows: Tensor
    block_tables: tuple[tuple[int, ...], ...]
    num_new_tokens: tuple[int, ...]
    context_lens: tuple[int, ...]
    cu_seqlens: tuple[int, ...]
    block_size: int

    @property
    def n_tokens(self) -> int:
        return self.cu_seqlens[-1]

    @property
    def n_sequences(self) -> int:
        return len(self.num_new_tokens)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence brings exactly one token."""
        return self.n_tokens == self.n_sequences
