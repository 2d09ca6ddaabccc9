"""Who computes, and how: an engine, what it stores weights as, its processes and threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["llama", "llama.cpp", "transformers"]


@dataclass(frozen=True)
class Contestant:
    """`dtype` is what is stored and computed: a torch dtype, or GGUF's "q8_0"."""

    engine: EngineName
    dtype: str
    n_threads: int
    """Of each process."""
    tp: int = 1
    pp: int = 1
    quantize: str | None = None
    transport: str | None = None

    @property
    def n_ranks(self) -> int:
        return self.tp * self.pp

    @property
    def stored(self) -> str:
        return self.quantize or self.dtype

    @property
    def name(self) -> str:
        """In results and tables; says everything, so that no two have the same."""
        where = f"1 × {self.n_threads} threads" if self.n_threads > 1 else "1 thread"
        if self.n_ranks > 1:
            sizes = {"tp": self.tp, "pp": self.pp}
            axes = [f"{axis}{size}" for axis, size in sizes.items() if size > 1]
            words = [*axes, "×", str(self.n_threads), "threads" if self.n_threads > 1 else "thread"]
            where = " ".join([*words, *filter(None, [self.transport])])
        return f"{self.engine} {self.stored}, {where}"


def one_process(dtype: str, *, n_cores: int, quantize: str | None = None) -> Contestant:
    """We, in one process with a thread for every core."""
    return Contestant("llama", dtype, n_cores, quantize=quantize)


def ranks(
    dtype: str, *, n_cores: int, quantize: str | None = None, transport: str = "shm"
) -> Contestant:
    """We, in a tensor-parallel rank for every core, at least two."""
    n_ranks = max(2, n_cores)
    return Contestant("llama", dtype, 1, tp=n_ranks, quantize=quantize, transport=transport)


def peer(engine: EngineName, dtype: str, *, n_cores: int) -> Contestant:
    return Contestant(engine, dtype, n_cores)
