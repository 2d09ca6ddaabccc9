"""The options that the commands which run a model share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from llama.cli.terminal import say
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError

if TYPE_CHECKING:
    from llama.llm import LLM

Size = int | Literal["auto"] | None
"""Ranks along one axis; "auto" lets the memory plan choose, None takes LLM's default."""


@dataclass(frozen=True)
class ModelFlags:
    """What every command lets its user say of a model; None leaves a choice to LLM.

    Args:
        tokenizer_path: file of the tokenizer; by default the one in ckpt_dir or beside it
        tp: tensor parallel size, or auto; with pp, as many ranks as needed are started
        pp: pipeline parallel size, or auto
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps
        backend: gloo or nccl
        transport: shm or gloo between ranks of one host; auto is shm for ranks on its CPUs
        attention: auto, paged, flash, native, sdpa or naive; auto takes the first of paged and
            flash that a GPU can run, native on a CPU, else sdpa
        max_seq_len: longest prompt and completion together, in tokens; by default 2048, or as far
            as the positions of the model go
        format: format of the checkpoint, where it is not recognised
        quantize: hold weights as int8, int8_dynamic, int4 or fp8; int4:64 is int4 in groups of 64
        verify: check every file against checklist.chk or MANIFEST.sha256 before it is used
    """

    tokenizer_path: str | None = None
    tp: Size = None
    pp: Size = None
    dtype: str | None = None
    device: str | None = None
    backend: str | None = None
    transport: str | None = None
    attention: str = "auto"
    max_seq_len: int | None = None
    format: str | None = None
    quantize: str | None = None
    verify: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelFlags):
    """LLM's arguments: the flags, and what a command decides."""

    ckpt_dir: str
    max_batch_size: int
    chat_format: str | None = None

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


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are drawn.

    Args:
        temperature: 0 takes the most probable token every time
        top_p: draw from the most probable tokens that make up this share; 1 is off
        top_k: draw from this many most probable tokens; 0 is off
        seed: the same seed gives the same text on every layout
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = None

    def params(self, *, max_tokens: int | None) -> SamplingParams:
        """Raises UsageError for a value out of range; a command is there to generate something."""
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"--max_tokens must be at least 1, got {max_tokens}")
        return SamplingParams(**asdict(self), max_tokens=max_tokens)
