"""The cache's shapes and sizes; what is read back is tested with attention and the models."""

from __future__ import annotations

import pytest
import torch

from llama.errors import OutOfMemoryError
from llama.kvcache.cache import KVCache, block_bytes

CPU = torch.device("cpu")


def make_cache(num_blocks: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(
        range(3, 5),
        num_blocks=num_blocks,
        block_size=4,
        ring_blocks=num_blocks,
        n_kv_heads=2,
        head_dim=8,
        dtype=dtype,
        device=CPU,
    )


def test_layers_go_by_global_index() -> None:
    cache = make_cache(5)
    k, v = cache.layer(4)
    assert k.shape == v.shape == (20, 2, 8)
    with pytest.raises(KeyError):
        cache.layer(2)


def test_layers_and_sides_do_not_overlap() -> None:
    cache = make_cache(5)
    sides = [side for index in (3, 4) for side in cache.layer(index)]
    for number, side in enumerate(sides):
        side.fill_(number)
    assert [side.unique().tolist() for side in sides] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    cache = make_cache(5, dtype)
    held = sum(side.nbytes for index in (3, 4) for side in cache.layer(index))
    assert cache.nbytes == held
    assert held == 5 * block_bytes(2, block_size=4, n_kv_heads=2, head_dim=8, dtype=dtype)


def test_what_cannot_be_had_is_named() -> None:
    with pytest.raises(OutOfMemoryError, match=r"no \d+ bytes .* lower max_seq_len"):
        make_cache(10**14)
