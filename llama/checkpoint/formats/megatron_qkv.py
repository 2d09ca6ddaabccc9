"""Megatron's fused matrices, taken apart by views: no row is copied or moved.

One shard of queries, keys and values is laid out by the checkpoint version:

    none, 0   [3, heads, head_dim]                    a block of each per shard
    1.0       [heads, head_dim, 3]                    every third row
    2.0, 3.0  [groups, heads per group + 2, head_dim]  a group's queries, its key, its value

Without grouped queries a group is one head. Each shard is taken apart before shards are joined: a
block of version 0 is a block of one shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama.checkpoint.files.part import Part
from llama.checkpoint.files.stored import StoredTensor
from llama.errors import CheckpointError

VERSIONS = (0.0, 1.0, 2.0, 3.0)
"""Of checkpoints, all that there are; files without one are of version 0."""


@dataclass(frozen=True)
class QkvLayout:
    """How the rows of one shard are ordered; counts are those of one shard."""

    version: float
    n_heads: int
    n_groups: int
    head_dim: int

    @property
    def rows(self) -> int:
        return (self.n_heads + 2 * self.n_groups) * self.head_dim

    def split(self, shard: Part) -> tuple[list[Part], list[Part], list[Part]]:
        """The q, the k and the v pieces of `shard`, of `rows` rows, in the order of the heads."""
        if self.version >= 2:
            return self._split_by_group(shard)
        if self.version >= 1:
            parts = [shard.view(lambda g, i=i: g[i::3]) for i in range(3)]  # type: ignore[misc]
        else:
            block = self.rows // 3
            parts = [_rows(shard, i * block, block) for i in range(3)]
        q, k, v = parts
        return [q], [k], [v]

    def _split_by_group(self, shard: Part) -> tuple[list[Part], list[Part], list[Part]]:
        q_rows = self.n_heads // self.n_groups * self.head_dim
        q, k, v = [], [], []
        for group in range(self.n_groups):
            start = group * (q_rows + 2 * self.head_dim)
            q.append(_rows(shard, start, q_rows))
            k.append(_rows(shard, start + q_rows, self.head_dim))
            v.append(_rows(shard, start + q_rows + self.head_dim, self.head_dim))
        return q, k, v


def split_qkv(
    shards: Sequence[Part], layout: QkvLayout
) -> tuple[StoredTensor, StoredTensor, StoredTensor]:
    """Full q, k and v, weights or biases, from the shards of all tensor ranks in order.

    Raises CheckpointError when a shard has not the rows that `layout` says.
    """
    q: list[Part] = []
    k: list[Part] = []
    v: list[Part] = []
    for shard in shards:
        if not shard.shape or shard.shape[0] != layout.rows:
            raise CheckpointError(
                f"{shard.path}: a fused QKV tensor has shape {shard.shape}, but {layout.rows} rows "
                f"belong to {layout.n_heads} heads in {layout.n_groups} groups of head_dim "
                f"{layout.head_dim} on each of {len(shards)} tensor ranks; its arguments belong to "
                f"another model"
            )
        for pieces, more in zip((q, k, v), layout.split(shard), strict=True):
            pieces.extend(more)
    return StoredTensor.of(q, dim=0), StoredTensor.of(k, dim=0), StoredTensor.of(v, dim=0)


def split_gate_up(shards: Sequence[Part]) -> tuple[StoredTensor, StoredTensor]:
    """Full gate and up projections; every shard is [gate; up] of its own rows.

    Raises CheckpointError for an odd number of rows.
    """
    gate: list[Part] = []
    up: list[Part] = []
    for shard in shards:
        half, odd = divmod(shard.shape[0] if shard.shape else 1, 2)
        if odd:
            raise CheckpointError(
                f"{shard.path}: a fused gate and up projection has shape {shard.shape}, which has "
                f"no two halves"
            )
        gate.append(_rows(shard, 0, half))
        up.append(_rows(shard, half, half))
    return StoredTensor.of(gate, dim=0), StoredTensor.of(up, dim=0)


def _rows(shard: Part, start: int, length: int) -> Part:
    return shard.view(lambda geometry: geometry.narrow(0, start, length))
