"""The model options that `llama generate` and `llama chat` share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from llama.cli.terminal import say

if TYPE_CHECKING:
    from llama.llm import LLM

Size = int | Literal["auto"] | None
"""Ranks along one axis; "auto" lets the memory plan choose, None takes LLM's default."""


@dataclass(frozen=True)
class ModelOptions:
    """LLM's arguments; None leaves a choice to it."""

    ckpt_dir: str
    tokenizer_path: str | None
    format: str | None
    verify: bool
    tp: Size
    pp: Size
    dtype: str | None
    device: str | None
    backend: str | None
    max_seq_len: int
    max_batch_size: int

    @property
    def needs_ranks(self) -> bool:
        """Whether more than this process is asked for, or may turn out to be needed."""
        return any(size not in (None, 1) for size in (self.tp, self.pp))

    def load(self) -> LLM:
        from llama.llm import LLM  # not at the top: help and usage errors need not wait for torch

        llm = LLM(**asdict(self))
        if llm.layout_reason and llm.context.rank == 0:
            say(f"layout: {llm.layout_reason}")
        return llm
