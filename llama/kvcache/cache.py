"""The tensors that keep K and V of past tokens, for the layers of one rank.

Which block belongs to whom is the scheduler's affair; here a block is `block_size` slots in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from llama.errors import OutOfMemoryError


class KVCache:
    """K and V of `num_blocks` blocks for each of `layers` (global indices).

    One sequence has at most `ring_blocks` of them; see `llama.ops.batch`.

    The memory is not initialised: a slot must be written before it is read. Raises OutOfMemoryError
    with the number of bytes when it cannot be had.
    """

    def __init__(
        self,
        layers: Iterable[int],
        *,
        num_blocks: int,
        block_size: int,
        ring_blocks: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.ring_blocks = ring_blocks
        indices = tuple(layers)
        shape = (len(indices), 2, num_blocks * block_size, n_kv_heads, head_dim)
        self.nbytes = num_blocks * block_bytes(
            len(indices),
            block_size=block_size,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        )
        try:
            memory = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:  # torch has no common type for this on CPU and CUDA
            raise OutOfMemoryError(
                f"no {self.nbytes} bytes for the KV cache of {num_blocks} blocks of {block_size} "
                f"tokens on {device}; lower max_seq_len, max_batch_size or num_blocks ({error})"
            ) from error
        self._layers = {
            index: (layer[0], layer[1]) for index, layer in zip(indices, memory, strict=True)
        }

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """K and V of one layer, each (num_blocks · block_size, n_kv_heads, head_dim)."""
        return self._layers[index]


def block_bytes(
    n_layers: int, *, block_size: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes that one block takes over `n_layers` layers, K and V."""
    return 2 * n_layers * block_size * n_kv_heads * head_dim * dtype.itemsize
