"""`llama generate`: prompts in, whole texts out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from llama.cli.model_options import ModelOptions, Size
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
        llm = self.model.load()
        began = time.perf_counter()
        outputs = llm.generate(self.prompts, self.params)
        elapsed_s = time.perf_counter() - began
        stats = stats_lines(llm, as_json=self.stats == "json") if self.stats else []
        if llm.context.rank != 0:
            return
        print("\n\n".join(_whole_text(output, llm.tokenizer) for output in outputs), flush=True)
        n_tokens = sum(len(output.token_ids) for output in outputs)
        say(f"{n_tokens} tokens in {elapsed_s:.2f} s ({n_tokens / elapsed_s:.1f} tokens/s)")
        for line in stats:
            say(line)


def _whole_text(output: RequestOutput, tokenizer: Tokenizer) -> str:
    """Prompt and completion as one text: decoded alone, a completion may lose its first space."""
    prompt_ids = output.prompt_token_ids
    whole = tokenizer.decode([*prompt_ids, *output.token_ids])
    return f"{output.prompt}{whole[len(tokenizer.decode(prompt_ids)) :]}"


@typed
def generate(
    ckpt_dir: str,
    *prompts: str,
    tokenizer_path: str | None = None,
    max_tokens: int = 128,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int | None = None,
    tp: Size = None,
    pp: Size = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    max_seq_len: int = 2048,
    max_batch_size: int | None = None,
    format: str | None = None,
    verify: bool = False,
    stats: bool | Literal["json"] = False,
) -> Generate:
    """Complete each prompt and print the whole text; the speed goes to stderr.

    Args:
        ckpt_dir: folder of the checkpoint
        prompts: texts to complete, all in one batch
        tokenizer_path: file of the tokenizer; by default the one in ckpt_dir or beside it
        max_tokens: longest completion, in tokens
        temperature: 0 takes the most probable token every time
        top_p: draw from the most probable tokens that make up this share; 1 is off
        top_k: draw from this many most probable tokens; 0 is off
        seed: the same seed gives the same text on every layout
        tp: tensor parallel size, or auto; with pp, as many ranks as needed are started
        pp: pipeline parallel size, or auto
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps
        backend: gloo or nccl
        max_seq_len: longest prompt and completion together, in tokens
        max_batch_size: prompts that run at once; by default all, up to 32
        format: format of the checkpoint, where it is not recognised
        verify: check every file against checklist.chk or MANIFEST.sha256 before it is used
        stats: also tell what every rank loaded and did; "--stats json" as one object a rank
    """
    if not prompts:
        raise UsageError("no prompt; use: llama generate CKPT_DIR PROMPT ...")
    return Generate(
        ModelOptions(
            ckpt_dir=ckpt_dir,
            tokenizer_path=tokenizer_path,
            format=format,
            verify=verify,
            tp=tp,
            pp=pp,
            dtype=dtype,
            device=device,
            backend=backend,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size or min(len(prompts), 32),
        ),
        prompts,
        SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens
        ),
        stats,
    )
