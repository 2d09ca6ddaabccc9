"""How probable a model finds a given text. Numbers only; who computes them is not known here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreOutput:
    """`logprobs` has a natural-log probability for each token, given all before it; None for the
    first, which nothing comes before.
    """

    prompt_token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]

    @property
    def scored(self) -> tuple[float, ...]:
        """The logprobs without the first."""
        return tuple(logprob for logprob in self.logprobs if logprob is not None)

    @property
    def n_scored(self) -> int:
        return len(self.scored)

    @property
    def loss(self) -> float:
        """Mean negative logprob, in nats a token."""
        return mean_loss(self.scored)

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def mean_loss(logprobs: Sequence[float]) -> float:
    """Mean negative logprob, in nats a token, summed without rounding."""
    return -math.fsum(logprobs) / len(logprobs)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
