"""Linear layers, each holding some rows (column parallel) or columns (row parallel) of its weight.

"Column" and "row" are Megatron's words for the transposed weight: a column-parallel layer cuts the
output features, a row-parallel one the input features. Parts need not be equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.errors import UsageError
from llama.layers.parameter import scales_parameter, sharded_parameter
from llama.parallel.comm import Communicator
from llama.parallel.layout import partition
from llama.parallel.shard import Shard, head_shard, replicated, sliced, stacked
from llama.quant.base import DENSE, LinearMethod


class ParallelLinear(nn.Module):
    """A local weight and bias, and the product with them. The features named are the full ones.

    `method` says how the weight is held: as the parameter `weight`, and `scales` or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight: Shard,
        bias: Shard | None,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.tp = tp
        self.method = method
        stored = method.store(weight, dtype=dtype)
        self._margins = stored.margins
        self.weight = sharded_parameter(
            stored.shard, dtype=stored.values.dtype, shape=stored.values.shape, intake=stored.intake
        )
        self.scales = None if stored.scales is None else scales_parameter(stored.scales)
        self.bias = None if bias is None else sharded_parameter(bias, dtype=dtype)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (N, local inputs) -> (N, local outputs)."""
        if self._margins != (0, 0):
            x = F.pad(x, self._margins)
        return self.method.apply(x, self.weight, self.scales, bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, tp_rank={self.tp.rank}/{self.tp.size}, "
            f"local={tuple(self.weight.shape)}"
        )


class ColumnParallelLinear(ParallelLinear):
    """Each rank computes its part of the output features.

    `parts` are the output features of every rank, by default balanced. With `gather_output` every
    rank returns all of them. `name` is the layer's in the checkpoint. Raises UsageError when there
    are more ranks than features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        tp: Communicator,
        gather_output: bool = False,
        name: str,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
        parts: Sequence[range] | None = None,
    ) -> None:
        self.parts = parts or _balanced(out_features, tp, what="out_features")
        self.gather_output = gather_output
        part = self.parts[tp.rank]
        super().__init__(
            in_features,
            out_features,
            weight=sliced(f"{name}.weight", (out_features, in_features), 0, part),
            bias=sliced(f"{name}.bias", (out_features,), 0, part) if bias else None,
            tp=tp,
            dtype=dtype,
            method=method,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_features) -> (N, own part), or (N, out_features) when gathered."""
        out = self.multiply(x, self.bias)
        if self.gather_output and self.tp.size > 1:
            return self._gather(out)
        return out

    def _gather(self, out: Tensor) -> Tensor:
        sizes = [len(part) for part in self.parts]
        widest = max(sizes)
        # all_gather wants equal shapes
        gathered = self.tp.all_gather(F.pad(out, (0, widest - out.shape[-1])), dim=-1)
        if min(sizes) == widest:
            return gathered
        starts = range(0, widest * len(sizes), widest)
        kept = [gathered.narrow(-1, start, size) for start, size in zip(starts, sizes, strict=True)]
        return torch.cat(kept, dim=-1)


class MergedColumnParallelLinear(ParallelLinear):
    """Several column-parallel layers over one input as a single product.

    `layers` lists (name in the checkpoint, out_features, own part) in the order of the output.
    """

    def __init__(
        self,
        in_features: int,
        layers: Sequence[tuple[str, int, range]],
        *,
        bias: bool,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        weights = [(f"{name}.weight", (out, in_features), part) for name, out, part in layers]
        biases = [(f"{name}.bias", (out,), part) for name, out, part in layers]
        super().__init__(
            in_features,
            sum(out for _, out, _ in layers),
            weight=stacked(weights, dim=0),
            bias=stacked(biases, dim=0) if bias else None,
            tp=tp,
            dtype=dtype,
            method=method,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_features) -> (N, own parts one after the other)."""
        return self.multiply(x, self.bias)


class QKVParallelLinear(MergedColumnParallelLinear):
    """wq, wk and wv as one product, for this rank's query heads and the KV heads that serve them.

    Heads need not divide evenly; above n_kv_heads ranks hold copies of KV heads. Raises UsageError
    when there are more ranks than query heads.
    """

    def __init__(
        self,
        in_features: int,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        bias: bool,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        own = head_shard(n_heads, n_kv_heads, tp_size=tp.size, tp_rank=tp.rank)
        kv_features = n_kv_heads * head_dim
        layers = [
            ("wq", n_heads * head_dim, own.rows(head_dim)),
            ("wk", kv_features, own.kv_rows(head_dim)),
            ("wv", kv_features, own.kv_rows(head_dim)),
        ]
        super().__init__(in_features, layers, bias=bias, tp=tp, dtype=dtype, method=method)
        self.n_local_heads = len(own.heads)
        self.n_local_kv_heads = len(own.kv_heads)


class RowParallelLinear(ParallelLinear):
    """Each rank multiplies its part of the input features; the sum over ranks is on every rank.

    `parts` are the input features of every rank, by default balanced. The bias is held in full and
    added once, after the sum. Without `input_is_parallel` x is whole and each rank takes its part.
    Raises UsageError when there are more ranks than features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        tp: Communicator,
        input_is_parallel: bool = True,
        name: str,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
        parts: Sequence[range] | None = None,
    ) -> None:
        self.part = (parts or _balanced(in_features, tp, what="in_features"))[tp.rank]
        self.input_is_parallel = input_is_parallel
        super().__init__(
            in_features,
            out_features,
            weight=sliced(f"{name}.weight", (out_features, in_features), 1, self.part),
            bias=replicated(f"{name}.bias", (out_features,)) if bias else None,
            tp=tp,
            dtype=dtype,
            method=method,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, own part) or (N, in_features) -> (N, out_features)."""
        if self.tp.size == 1:
            return self.multiply(x, self.bias)
        if not self.input_is_parallel:
            x = x[..., self.part.start : self.part.stop]
        out = self.tp.all_reduce(self.multiply(x))
        return out if self.bias is None else out + self.bias


def _balanced(features: int, tp: Communicator, *, what: str) -> tuple[range, ...]:
    if tp.size > features:
        raise UsageError(f"tp_size {tp.size} exceeds {what} {features}; use at most {features}")
    return partition(features, tp.size)
