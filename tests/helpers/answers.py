"""What the engine says to one prompt, for several checkpoints in one job.

Imported by ranks: the library that the answers are compared with is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.engine.sequence import SamplingParams
from llama.parallel.context import ParallelContext
from tests.helpers.engines import make_engine


@dataclass(frozen=True)
class Answer:
    """`logits` (n_prompt, vocab_size) fp32 of the prompt, and the greedy tokens after it."""

    logits: Tensor
    token_ids: list[int]


def answers(
    context: ParallelContext, folders: Mapping[str, str], prompt: list[int], n_greedy: int
) -> dict[str, Answer]:
    """This rank's answer for every folder, under the folder's name. Collective over the world."""
    greedy = SamplingParams(temperature=0.0, max_tokens=n_greedy, ignore_eos=True)
    found = {}
    for name, folder in folders.items():
        engine = make_engine(context, folder)
        logits = engine.forward_rows(torch.tensor([prompt]), 0)[0]
        (output,) = engine.generate([prompt], [greedy])
        found[name] = Answer(logits, list(output.token_ids))
    return found
