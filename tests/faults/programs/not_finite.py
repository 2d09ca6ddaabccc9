"""Requests over weights that hold NaN for one token, and -inf for every logit; and good ones.

FOLDER [options of `decode`]. Says "answer [ids]" before, "refused KIND: message" for each fault,
and "answer [ids]" after each, of the same request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.faults.programs import decode
from tests.faults.programs.rank import observed, say

if TYPE_CHECKING:
    from torch import Tensor

    from llama.llm import LLM

POISONED_ID = 300
"""A token whose embedding is no number, so that only requests with it fail."""


def ask(llm: LLM, prompt: list[int]) -> None:
    from llama.engine.sequence import SamplingParams
    from llama.errors import LlamaError

    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    try:
        (output,) = llm.generate([prompt], params)
    except LlamaError as error:
        say(f"refused {type(error).__name__}: {error}")
    else:
        say(f"answer {json.dumps(list(output.token_ids))}")


@contextmanager
def filled(weight: Tensor | None, value: float) -> Iterator[None]:
    """`value` in all of `weight` for the length of the body; None where another rank has it."""
    kept = None if weight is None else weight.clone()
    if weight is not None:
        weight.fill_(value)
    yield
    if weight is not None and kept is not None:
        weight.copy_(kept)


def main() -> None:
    options = decode.parse()
    with observed(options.folder):
        import torch

        llm = decode.build(options)
        good = llm.tokenizer.encode_prompt(decode.PROMPT)
        stage = llm.engine.stage
        ask(llm, good)
        with torch.inference_mode():
            embedding = stage.tok_embeddings
            with filled(None if embedding is None else embedding.weight, float("nan")):
                ask(llm, good)
            ask(llm, good)
            head = stage.output
            with filled(None if head is None else head.weight, float("-inf")):
                ask(llm, good)
            ask(llm, good)
        say("done")


if __name__ == "__main__":
    main()
