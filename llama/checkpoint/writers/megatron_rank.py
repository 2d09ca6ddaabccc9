"""What one rank of Megatron-LM holds: its stage, its slices, its names.

Linears are fused as the ranks compute them: by query group [its queries; its key; its value], and
[gate; up] of one rank's own rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama.checkpoint.canonical import EMBEDDING, HEAD, POSITIONS, layer_shapes, split_dim
from llama.checkpoint.formats.megatron_names import (
    CORE,
    GATE_UP,
    HEAD_COPY,
    LEGACY,
    QKV,
    Spelling,
)
from llama.checkpoint.writers.megatron_args import padded_vocab
from llama.checkpoint.writers.output_tensor import OutputTensor, Piece, Repeated
from llama.checkpoint.writers.source import Source


@dataclass(frozen=True)
class MegatronRank:
    """One of tp × pp ranks; `pp_rank` is its pipeline stage, of which all have as many layers."""

    source: Source
    tp: int
    pp: int
    tp_rank: int
    pp_rank: int

    def model(self) -> dict[str, Any]:
        """Its state dict: nested for GPT-2, flat for Llama."""
        flat = dict(self._tensors())
        return _nested(flat) if self._spelling is LEGACY else flat

    @property
    def _spelling(self) -> Spelling:
        return LEGACY if self.source.config.architecture == "gpt2" else CORE

    def _tensors(self) -> Iterator[tuple[str, OutputTensor]]:
        """(stored name, tensor), in the order of the model."""
        n_layers = self.source.config.n_layers // self.pp
        is_last = self.pp_rank == self.pp - 1
        if self.pp_rank == 0:
            yield self._output(EMBEDDING, self._vocabulary(EMBEDDING))
            if POSITIONS in self.source.tensors:
                yield self._output(POSITIONS, [self.source.rows(POSITIONS)])
        for local in range(n_layers):
            yield from self._layer(local, self.pp_rank * n_layers + local)
        if is_last:
            for name in (name for name in self.source.tensors if name.startswith("norm.")):
                yield self._output(name, [self.source.rows(name)])
        if is_last and not self.source.is_tied:
            yield self._output(HEAD, self._vocabulary(HEAD))
        elif is_last and self.pp > 1:
            name = HEAD_COPY if self._spelling is LEGACY else HEAD
            yield self._output(name, self._vocabulary(EMBEDDING))

    def _output(
        self, canonical: str, pieces: list[Piece], layer: int | None = None
    ) -> tuple[str, OutputTensor]:
        stored = self._spelling.write(canonical, layer)
        return stored, self.source.output(stored, *pieces)

    def _layer(self, local: int, number: int) -> Iterator[tuple[str, OutputTensor]]:
        is_gpt2 = self.source.config.architecture == "gpt2"
        for name in layer_shapes(self.source.config):
            owner, _, kind = name.rpartition(".")
            canonical, pieces = name, [self._slice(f"layers.{number}.{name}", split_dim(name))]
            if owner == "attention.wq":
                canonical, pieces = f"{QKV}.{kind}", self._qkv(number, kind)
            elif owner == "feed_forward.w1":
                canonical = f"{GATE_UP}.{kind}"
                if not is_gpt2:
                    pieces.append(self._slice(f"layers.{number}.feed_forward.w3.{kind}", 0))
            elif owner in ("attention.wk", "attention.wv", "feed_forward.w3"):
                continue
            yield self._output(canonical, pieces, local)

    def _slice(self, name: str, dim: int | None) -> Piece:
        """This rank's part of a tensor that is cut along `dim`; all of it for None."""
        if dim is None:
            return self.source.rows(name)
        length = self.source.tensors[name].shape[dim] // self.tp
        return self.source.rows(name, dim=dim, start=self.tp_rank * length, length=length)

    def _qkv(self, number: int, kind: str) -> list[Piece]:
        config, head_dim = self.source.config, self.source.config.head_dim
        n_groups = config.n_kv_heads // self.tp
        rows = {
            "wq": config.n_heads // config.n_kv_heads * head_dim,
            "wk": head_dim,
            "wv": head_dim,
        }
        return [
            self.source.rows(
                f"layers.{number}.attention.{linear}.{kind}", start=group * length, length=length
            )
            for group in range(self.tp_rank * n_groups, (self.tp_rank + 1) * n_groups)
            for linear, length in rows.items()
        ]

    def _vocabulary(self, name: str) -> list[Piece]:
        """This rank's rows of the padded embedding or head; padding repeats the last token."""
        vocab_size = self.source.config.vocab_size
        n_rows = padded_vocab(self.source.config, self.tp) // self.tp
        start = self.tp_rank * n_rows
        held = max(0, min(vocab_size - start, n_rows))
        pieces: list[Piece] = []
        if held:
            pieces.append(self.source.rows(name, start=start, length=held))
        if held < n_rows:
            last = self.source.tensors[name].narrow(0, vocab_size - 1, 1)
            pieces.append(Repeated(last, n_rows - held))
        return pieces


def _nested(flat: dict[str, OutputTensor]) -> dict[str, Any]:
    """The tree of Megatron-LM until 2023; names within its encoder stay joined."""
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        path = name.split(".")
        if path[1] == "encoder":
            path = [*path[:2], ".".join(path[2:])]
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = tensor
    return tree
