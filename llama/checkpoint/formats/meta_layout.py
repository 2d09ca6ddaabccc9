"""Which tensors a Meta checkpoint has, how large they are, and how n files share them.

The dims along which Meta's model-parallel layers cut are fixed, with two exceptions that only
shapes tell: token embeddings are cut along the hidden dim up to Llama 2 and along the vocabulary
since Llama 3, and where there are more files than KV heads each file has a copy of one head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llama.config import ModelConfig

EMBEDDING = "tok_embeddings.weight"
OUTPUT = "output.weight"
KEY = "layers.0.attention.wk.weight"
_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,5})\.(.+)")
_ROPE_TABLES = re.compile(r"rope\.freqs|layers\.\d+\.attention\.inner_attention\.rope\.freqs")


@dataclass(frozen=True)
class Slot:
    """Sizes of a tensor by name, and the dim along which files share it; None: all have a copy."""

    sizes: tuple[str, ...]
    dim: int | None


_TOP = {
    EMBEDDING: Slot(("vocab_size", "dim"), None),
    "norm.weight": Slot(("dim",), None),
    OUTPUT: Slot(("vocab_size", "dim"), 0),
}
# Meta's own files have no biases. A row-parallel bias is added once, after the sum: every file
# has all of it.
_IN_LAYER = {
    "attention.wq.weight": Slot(("n_heads*head_dim", "dim"), 0),
    "attention.wk.weight": Slot(("n_kv_heads*head_dim", "dim"), 0),
    "attention.wv.weight": Slot(("n_kv_heads*head_dim", "dim"), 0),
    "attention.wo.weight": Slot(("dim", "n_heads*head_dim"), 1),
    "attention.wq.bias": Slot(("n_heads*head_dim",), 0),
    "attention.wk.bias": Slot(("n_kv_heads*head_dim",), 0),
    "attention.wv.bias": Slot(("n_kv_heads*head_dim",), 0),
    "attention.wo.bias": Slot(("dim",), None),
    "feed_forward.w1.weight": Slot(("ffn_dim", "dim"), 0),
    "feed_forward.w3.weight": Slot(("ffn_dim", "dim"), 0),
    "feed_forward.w2.weight": Slot(("dim", "ffn_dim"), 1),
    "feed_forward.w1.bias": Slot(("ffn_dim",), 0),
    "feed_forward.w3.bias": Slot(("ffn_dim",), 0),
    "feed_forward.w2.bias": Slot(("dim",), None),
    "attention_norm.weight": Slot(("dim",), None),
    "ffn_norm.weight": Slot(("dim",), None),
}


@dataclass(frozen=True)
class MetaLayout:
    """How `n_files` files share a model of `config`; the embedding is cut along `embedding_dim`."""

    config: ModelConfig
    n_files: int
    embedding_dim: int

    def slot(self, name: str) -> Slot | None:
        """Where tensor `name` belongs; None when a model of this config has no such tensor."""
        if name == EMBEDDING:
            return Slot(_TOP[name].sizes, self.embedding_dim)
        match = _LAYER.fullmatch(name)
        if match is None:
            return _TOP.get(name)
        return _IN_LAYER.get(match[2]) if int(match[1]) < self.config.n_layers else None

    def full_shape(self, slot: Slot) -> tuple[int, ...]:
        return tuple(self._size(name) for name in slot.sizes)

    def file_shape(self, slot: Slot) -> tuple[int, ...] | None:
        """What one file holds; None when n_files cannot share the tensor evenly, in whole heads."""
        shape = list(self.full_shape(slot))
        if slot.dim is None:
            return tuple(shape)
        n_parts, rest = divmod(self.n_files, self.copies(slot))
        if rest or shape[slot.dim] % n_parts:
            return None
        shape[slot.dim] //= n_parts
        unit = self.config.head_dim if slot.sizes[slot.dim].endswith("*head_dim") else 1
        return None if shape[slot.dim] % unit else tuple(shape)

    def copies(self, slot: Slot) -> int:
        """How many files in a row hold the same part: more than one only for K and V."""
        is_kv = slot.dim == 0 and slot.sizes[0] == "n_kv_heads*head_dim"
        return -(-self.n_files // self.config.n_kv_heads) if is_kv else 1

    def explain(self, slot: Slot) -> str:
        """What one file should hold of the tensor, and why."""
        sizes = ", ".join(f"{size} {self._size(size)}" for size in slot.sizes)
        shape = self.file_shape(slot)
        if shape is None:
            return f"{self.n_files} files cannot share {sizes} evenly"
        files = "the only file" if self.n_files == 1 else f"each of {self.n_files} files"
        return f"params.json asks for {shape} in {files} ({sizes})"

    def _size(self, name: str) -> int:
        config = self.config
        if name == "n_heads*head_dim":
            return config.n_heads * config.head_dim
        if name == "n_kv_heads*head_dim":
            return config.n_kv_heads * config.head_dim
        return int(getattr(config, name))


def is_rope_table(name: str) -> bool:
    return _ROPE_TABLES.fullmatch(name) is not None
