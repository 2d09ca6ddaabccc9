"""The vocabulary's two ends: ids to hidden states, and hidden states to logits.

Each rank holds equally many rows; the last ones are zero where the vocabulary does not divide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.layers.linear import ParallelLinear
from llama.layers.parameter import sharded_parameter
from llama.parallel.comm import Communicator
from llama.parallel.shard import vocab_shard


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
    ) -> None:
        shape = (num_embeddings, embedding_dim)
        super().__init__(
            embedding_dim,
            num_embeddings,
            weight=vocab_shard(f"{name}.weight", shape, tp_size=tp.size, tp_rank=tp.rank),
            bias=None,
            tp=tp,
            dtype=dtype,
        )

    def forward(self, hidden: Tensor) -> Tensor | None:
        """hidden (R, embedding_dim) -> fp32 (R, num_embeddings) on tp rank 0, else None."""
        logits = self.tp.gather(self.multiply(hidden), dst=0, dim=-1)  # (R, padded vocabulary)
        return None if logits is None else logits[:, : self.out_features].float()
