"""`llama generate`: prompts in, whole texts out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from llama.cli.model_options import ModelFlags, ModelOptions, SamplingFlags
from llama.cli.option_groups import grouped
from llama.cli.phases import StartClock
from llama.cli.ranks import RankCommand
from llama.cli.stats import stats_lines
from llama.cli.terminal import say
from llama.cli.typed import typed
from llama.engine.sequence import RequestOutput, SamplingParams
from llama.errors import UsageError
from llama.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generate(RankCommand):
    """Complete all prompts in one batch; rank 0 prints them, and the speed to stderr."""

    model: ModelOptions
    prompts: tuple[str, ...]
    params: SamplingParams
    stats: bool | Literal["json"]

    def run(self) -> None:
        clock = StartClock()
        llm = self.model.load()
        clock.built()
        began = time.perf_counter()
        outputs = llm.generate(self.prompts, self.params)
        elapsed_s = time.perf_counter() - began
        stats = stats_lines(llm, clock, as_json=self.stats == "json") if self.stats else []
        if llm.context.rank != 0:
            return
        print("\n\n".join(_whole_text(output, llm.tokenizer) for output in outputs), flush=True)
        n_tokens = sum(len(output.token_ids) for output in outputs)
        say(f"{n_tokens} tokens in {elapsed_s:.2f} s ({n_tokens / elapsed_s:.1f} tokens/s)")
        if n_aborted := sum(output.finish_reason == "abort" for output in outputs):
            say(f"asked to stop: {n_aborted} of {len(outputs)} prompts were not begun")
        for line in stats:
            say(line)


def _whole_text(output: RequestOutput, tokenizer: Tokenizer) -> str:
    """Prompt and completion as one text: decoded alone, a completion may lose its first space."""
    prompt_ids = output.prompt_token_ids
    whole = tokenizer.decode([*prompt_ids, *output.token_ids])
    return f"{output.prompt}{whole[len(tokenizer.decode(prompt_ids)) :]}"


@typed
@grouped
def generate(
    ckpt_dir: str,
    *prompts: str,
    max_tokens: int = 128,
    sampling: SamplingFlags,
    model: ModelFlags,
    max_batch_size: int | None = None,
    stats: bool | Literal["json"] = False,
) -> Generate:
    """Complete each prompt and print the whole text; the speed goes to stderr.

    Args:
        ckpt_dir: folder of the checkpoint
        prompts: texts to complete, all in one batch
        max_tokens: longest completion, in tokens
        max_batch_size: prompts that run at once; by default all, up to 32
        stats: also tell what every rank loaded and did; "--stats json" as one object a rank
    """
    if not prompts:
        raise UsageError("no prompt; use: llama generate CKPT_DIR PROMPT ...")
    batch_size = min(len(prompts), 32) if max_batch_size is None else max_batch_size
    return Generate(
        ModelOptions(**vars(model), ckpt_dir=ckpt_dir, max_batch_size=batch_size),
        prompts,
        sampling.params(max_tokens=max_tokens),
        stats,
    )
