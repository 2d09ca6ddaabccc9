"""The ragged batch: what one step computes, as device tensors. Every op and layer reads this form.

Prefill, a chunk of it and decode differ only in how many new tokens a sequence brings. Tokens of
all sequences lie one after the other, without padding. Who builds a Batch (from a plan, or for the
Meta-style forward) is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeviceTables:
    """What a kernel reads of S decoding sequences where the host may not be asked, as in a CUDA
    graph.

    `block_tables` (S, ring_blocks) int64, of which what no token needs is any block, and
    `context_lens` (S,) int64, as in `Batch`.
    """

    block_tables: Tensor
    context_lens: Tensor


@dataclass(frozen=True)
class Batch:
    """N new tokens of S sequences.

    `token_ids` (N,) int64. `positions` (N,) int64, the place of each token in its sequence.
    `slot_mapping` (N,) int64, where each token's K and V go in the flattened cache:
    block · block_size + offset. `logit_rows` (R,) int64, the tokens whose logits are wanted.
    `target_rows` (T,) int64, the tokens for which the logprob of the one that follows is wanted,
    and `targets` (T,) int64, what follows.

    Host integers, one per sequence: `num_new_tokens`, `context_lens` (all tokens up to and
    including the new ones), `prompt_lens` (tokens of the whole prompt, whatever part of it is new)
    and `block_tables`. `cu_seqlens` (S + 1,) are the running sums of num_new_tokens from 0.

    A table is a ring: block number n of a sequence, which holds its tokens from n · block_size, is
    table[n % ring_blocks], so where every layer has a sliding window old blocks are written over.
    Of new tokens that the ring cannot keep only the last are written: `write_rows` (M,) says which
    rows, with one slot each in `slot_mapping`; None stands for all.

    With `tables` the host integers about contexts are not those of the step that runs.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    logit_rows: Tensor
    target_rows: Tensor
    targets: Tensor
    block_tables: tuple[tuple[int, ...], ...]
    num_new_tokens: tuple[int, ...]
    context_lens: tuple[int, ...]
    prompt_lens: tuple[int, ...]
    cu_seqlens: tuple[int, ...]
    block_size: int
    ring_blocks: int
    write_rows: Tensor | None = None
    tables: DeviceTables | None = None

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
