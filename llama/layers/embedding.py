"""The vocabulary's two ends: ids to hidden states, and hidden states to logits; and positions.

Each rank holds equally many rows of a vocabulary; the last ones are zero where it does not divide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.layers.linear import ParallelLinear
from llama.layers.parameter import sharded_parameter
from llama.ops.sampling import finite_rows
from llama.parallel.comm import Communicator
from llama.parallel.shard import replicated, vocab_shard
from llama.quant.base import DENSE, LinearMethod

ROWS_AT_ONCE = 64
"""Rows whose local logits `ParallelLMHead.logprobs` has in memory together."""


class VocabParallelEmbedding(nn.Module):
    """Each rank looks up the ids of its own rows; the sum over ranks is the embedding."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        tp: Communicator,
        name: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.tp = tp
        shape = (num_embeddings, embedding_dim)
        shard = vocab_shard(f"{name}.weight", shape, tp_size=tp.size, tp_rank=tp.rank)
        self.weight = sharded_parameter(shard, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids (N,) in 0 .. num_embeddings - 1 -> (N, embedding_dim)."""
        if self.tp.size == 1:
            return F.embedding(token_ids, self.weight)
        n_rows = self.weight.shape[0]
        rows = token_ids - self.tp.rank * n_rows
        is_elsewhere = (rows < 0) | (rows >= n_rows)
        out = F.embedding(rows.masked_fill_(is_elsewhere, 0), self.weight)
        return self.tp.all_reduce(out.masked_fill_(is_elsewhere.unsqueeze(-1), 0))

    def extra_repr(self) -> str:
        return (
            f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, "
            f"tp_rank={self.tp.rank}/{self.tp.size}, local={tuple(self.weight.shape)}"
        )


class PositionEmbedding(nn.Module):
    """A learned vector for each of `num_positions` places; every rank holds all."""

    def __init__(
        self, num_positions: int, embedding_dim: int, *, name: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        shard = replicated(f"{name}.weight", (num_positions, embedding_dim))
        self.weight = sharded_parameter(shard, dtype=dtype)

    def forward(self, positions: Tensor) -> Tensor:
        """positions (N,) in 0 .. num_positions - 1 -> (N, embedding_dim)."""
        return F.embedding(positions, self.weight)

    def extra_repr(self) -> str:
        return f"num_positions={self.weight.shape[0]}, embedding_dim={self.weight.shape[1]}"


class ParallelLMHead(ParallelLinear):
    """Logits over the vocabulary, gathered where tokens are drawn: on tp rank 0 alone."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        tp: Communicator,
        name: str,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        shape = (num_embeddings, embedding_dim)
        shard = vocab_shard(f"{name}.weight", shape, tp_size=tp.size, tp_rank=tp.rank)
        super().__init__(
            embedding_dim,
            num_embeddings,
            weight=shard,
            bias=None,
            tp=tp,
            dtype=dtype,
            method=method,
        )
        self._n_rows = shard.shape[0]

    def forward(self, hidden: Tensor) -> Tensor | None:
        """hidden (R, embedding_dim) -> fp32 (R, num_embeddings) on tp rank 0, else None."""
        logits = self.tp.gather(self.multiply(hidden), dst=0, dim=-1)  # (R, padded vocabulary)
        return None if logits is None else logits[:, : self.out_features].float()

    def logprobs(self, hidden: Tensor, targets: Tensor, n_words: int) -> Tensor:
        """Natural-log probability of `targets` (T,) among the first `n_words` ids: (T,) fp32.

        hidden is (T, embedding_dim). The same on every rank: each brings three numbers a row, never
        its logits, as in Megatron's vocab-parallel cross entropy (arXiv:1909.08053, section 3). NaN
        where one of the row's logits is not finite.
        """
        parts = self._parts(hidden, targets, n_words)
        every = self.tp.all_gather(parts, dim=0).view(self.tp.size, *parts.shape)  # (tp, 3, T)
        highest, sums, own = every.unbind(1)  # (tp, T) each
        top = highest.amax(0)
        return own.sum(0) - top - (sums * (highest - top).exp()).sum(0).log()

    def _parts(self, hidden: Tensor, targets: Tensor, n_words: int) -> Tensor:
        """`_tile` of all rows, (3, T) fp32; the target's logit is 0 where it is another rank's."""
        parts = torch.zeros(3, len(targets), dtype=torch.float32, device=hidden.device)
        parts[0] = -torch.inf
        first = self.tp.rank * self._n_rows
        n_own = min(max(0, n_words - first), self._n_rows)
        if n_own == 0:
            return parts
        columns = targets - first
        is_elsewhere = (columns < 0) | (columns >= n_own)
        columns = columns.masked_fill_(is_elsewhere, 0)
        for start in range(0, len(targets), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            parts[:, rows] = self._tile(hidden[rows], columns[rows], n_own)
        parts[2].masked_fill_(is_elsewhere, 0)
        return parts

    def _tile(self, hidden: Tensor, columns: Tensor, n_own: int) -> Tensor:
        """Of the first `n_own` local words: the highest logit h, the sum of exp(logit - h), and the
        logit of each row's column, (3, rows) fp32.
        """
        logits = self.multiply(hidden)[:, :n_own].float()  # (rows, n_own)
        highest = logits.amax(-1).masked_fill_(~finite_rows(logits), torch.nan)
        own = logits.gather(-1, columns[:, None])[:, 0]
        sums = logits.sub_(highest[:, None]).exp_().sum(-1)
        return torch.stack([highest, sums, own])
