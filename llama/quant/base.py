"""What a linear layer asks of the way in which its weight is stored: the interface, and plain.

The layer says which slice of which tensors is its weight. The method says what of a checkpoint must
be read for that, what lies in memory, how the one becomes the other, and how it is multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llama.ops.linear import linear
from llama.parallel.shard import Piece, Shard


class Intake(Protocol):
    """Where the loader brings a slice of a tensor, in any parts and in any order, from any thread.

    Each element comes once, in the dtype of the file.
    """

    @property
    def device(self) -> torch.device: ...

    def direct(self, where: tuple[slice, ...], dtype: torch.dtype) -> Tensor | None:
        """Memory for elements `where` of the slice, if bytes of `dtype` can be read into it."""
        ...

    def put(self, where: tuple[slice, ...], source: Tensor) -> None:
        """Elements `where` of the slice are `source`, which changes after the call."""
        ...


MakeIntake = Callable[[Piece, Mapping[str, Tensor]], Intake]
"""From a piece of a parameter and all tensors that the parameter's layer holds, by name."""


@dataclass(frozen=True)
class Memory:
    """A tensor that a layer holds."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a layer holds it: `values` as its parameter "weight", `scales` as "scales".

    `shard` says in elements which slices of a checkpoint are needed; with an `intake` they are not
    simply copied. `margins` are the columns before and after the layer's own that are held besides:
    x needs zeros there.
    """

    shard: Shard
    values: Memory
    scales: Memory | None = None
    margins: tuple[int, int] = (0, 0)
    intake: MakeIntake | None = None


class LinearMethod(ABC):
    """One way to hold a weight (output features, input features) and to multiply with it."""

    @property
    def is_plain(self) -> bool:
        """Whether the weight is a tensor as any other, which an embedding can share."""
        return False

    def check(self, device: torch.device) -> None:
        """Raises HardwareError where it cannot run on `device`."""
        return

    def workspace_bytes(self, *, n_rows: int, n_inputs: int, n_outputs: int, itemsize: int) -> int:
        """The most that a product of x (n_rows, n_inputs) takes beside x and its result, where
        numbers have `itemsize` bytes.
        """
        return 0

    @abstractmethod
    def store(self, weight: Shard, *, dtype: torch.dtype) -> StoredWeight:
        """How a layer that computes in `dtype` holds `weight`, a shard of two dims.

        Raises UsageError for a weight that cannot be held so.
        """

    @abstractmethod
    def apply(
        self, x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """x (N, columns held) -> (N, rows held) in the dtype of x; bias (rows held)."""


@dataclass(frozen=True)
class DenseLinear(LinearMethod):
    """The weight as it is, in the dtype that the layer computes in."""

    @property
    def is_plain(self) -> bool:
        return True

    def store(self, weight: Shard, *, dtype: torch.dtype) -> StoredWeight:
        return StoredWeight(weight, Memory(weight.shape, dtype))

    def apply(
        self, x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return linear(x, weight, bias)


DENSE = DenseLinear()
