"""`llama generate`, and the model options that every command has."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llama.cli.terminal import say
from llama.engine.sequence import RequestOutput, SamplingParams
from llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama.llm import LLM


@dataclass(frozen=True)
class ModelOptions:
    """LLM's arguments; None leaves a choice to it."""

    ckpt_dir: str
    tokenizer_path: str | None
    tp: int | None
    pp: int | None
    dtype: str | None
    device: str | None
    backend: str | None
    max_seq_len: int
    max_batch_size: int

    @property
    def n_ranks(self) -> int:
        return (self.tp or 1) * (self.pp or 1)

    def load(self) -> LLM:
        from llama.llm import LLM  # not at the top: help and usage errors need not wait for torch

        return LLM(**asdict(self))


def _whole_text(output: RequestOutput, tokenizer: Tokenizer) -> str:
    """Prompt and completion as one text: decoded alone, a completion may lose its first space."""
    prompt_ids = output.prompt_token_ids
    whole = tokenizer.decode([*prompt_ids, *output.token_ids])
    return f"{output.prompt}{whole[len(tokenizer.decode(prompt_ids)) :]}"


@dataclass(frozen=True)
class Generate:
    """Complete all prompts in one batch; rank 0 prints them, and the speed to stderr."""

    model: ModelOptions
    prompts: tuple[str, ...]
    params: SamplingParams
    stats: bool

    def run(self) -> None:
        llm = self.model.load()
        began = time.perf_counter()
        outputs = llm.generate(self.prompts, self.params)
        elapsed_s = time.perf_counter() - began
        ranks = llm.engine.stats() if self.stats else []
        if llm.context.rank != 0:
            return
        print("\n\n".join(_whole_text(output, llm.tokenizer) for output in outputs), flush=True)
        n_tokens = sum(len(output.token_ids) for output in outputs)
        say(f"{n_tokens} tokens in {elapsed_s:.2f} s ({n_tokens / elapsed_s:.1f} tokens/s)")
        for rank in ranks:
            say(str(rank))
