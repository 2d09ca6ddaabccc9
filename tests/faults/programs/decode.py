"""Builds a model and completes one prompt token by token, saying where it is. FOLDER [options].

Rank 0 says "token 7" for its seventh token and "answer [ids]" at the end; every rank says "built"
and "done". Other programs of this folder are this one with a fault in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.programs.rank import observed, say

if TYPE_CHECKING:
    from llama.llm import LLM

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo_model"
PROMPT = "Once upon a time"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ckpt_dir", type=Path, default=DEMO)
    parser.add_argument("--n_tokens", type=int, default=200)
    parser.add_argument("--n_prompt_tokens", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max_seq_len", type=int, default=4096)
    return parser.parse_args()


def build(options: argparse.Namespace, *, seed: int = 0, dtype: str | None = None) -> LLM:
    from llama.llm import LLM  # torch takes seconds, and the pid must be known before

    say("building")
    llm = LLM(
        options.ckpt_dir, max_seq_len=options.max_seq_len, max_batch_size=2, seed=seed, dtype=dtype
    )
    say("built")
    return llm


def decode(llm: LLM, options: argparse.Namespace) -> None:
    from llama.engine.sequence import SamplingParams

    prompt = llm.tokenizer.encode_prompt(PROMPT)
    if options.n_prompt_tokens is not None:
        prompt = (prompt * options.n_prompt_tokens)[: options.n_prompt_tokens]
    params = SamplingParams(
        temperature=options.temperature, max_tokens=options.n_tokens, ignore_eos=True
    )
    say("generating")
    token_ids: list[int] = []
    for output in llm.stream(prompt, params):
        token_ids = list(output.token_ids)
        say(f"token {len(token_ids)}")
    if llm.context.rank == 0:
        say(f"answer {json.dumps(token_ids)}")
    say("done")


def main(prepare: Callable[[LLM], None] | None = None) -> None:
    """The program; `prepare` puts a fault into the model that was built."""
    options = parse()
    with observed(options.folder):
        llm = build(options)
        if prepare is not None:
            prepare(llm)
        decode(llm, options)


if __name__ == "__main__":
    main()
