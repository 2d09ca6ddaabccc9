"""Self-attention over the paged cache, its heads dealt over ranks.

How positions enter and how attention is computed is not known here: a Step brings both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llama.layers.linear import QKVParallelLinear, RowParallelLinear
from llama.ops.attention import Attention
from llama.parallel.comm import Communicator
from llama.parallel.shard import head_shard
from llama.quant.base import DENSE, LinearMethod


@dataclass(frozen=True)
class Step:
    """What is made once per step and used by every layer.

    `rotate` puts positions into heads (N, heads, head_dim), if need be in place; None where they
    came in with the embedding; `attend` keeps new K and V in the cache, and reads it.
    """

    rotate: Callable[[Tensor], Tensor] | None
    attend: Attention


class ParallelAttention(nn.Module):
    """Grouped-query attention: whole KV groups per rank, or one KV head (a copy) and part of its
    group.

    Raises UsageError when there are more ranks than query heads.
    """

    def __init__(
        self,
        dim: int,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        bias: bool,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wqkv = QKVParallelLinear(
            dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            bias=bias,
            tp=tp,
            dtype=dtype,
            method=method,
        )
        shards = [
            head_shard(n_heads, n_kv_heads, tp_size=tp.size, tp_rank=rank)
            for rank in range(tp.size)
        ]
        self.wo = RowParallelLinear(
            n_heads * head_dim,
            dim,
            bias=bias,
            tp=tp,
            name="wo",
            dtype=dtype,
            method=method,
            parts=[shard.rows(head_dim) for shard in shards],
        )

    def forward(self, x: Tensor, step: Step, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim). k_cache and v_cache (slots, local KV heads, head_dim) are
        written.
        """
        n_heads, n_kv_heads = self.wqkv.n_local_heads, self.wqkv.n_local_kv_heads
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))  # (N, heads + 2 · KV heads, head_dim)
        qk = qkv[:, : n_heads + n_kv_heads]
        if step.rotate is not None:
            qk = step.rotate(qk)  # q and k lie side by side and turn together
        heads = step.attend(
            qk[:, :n_heads],
            qk[:, n_heads:],
            qkv[:, n_heads + n_kv_heads :],
            k_cache,
            v_cache,
            scale=self.head_dim**-0.5,
        )
        out: Tensor = self.wo(heads.flatten(1))
        return out
