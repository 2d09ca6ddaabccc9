"""What `llama score` found out, as lines and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from llama.engine.score import mean_loss, perplexity


@dataclass(frozen=True)
class ScoreReport:
    """A text of `n_tokens`, scored in `n_windows` windows; `logprobs` are without its first."""

    n_tokens: int
    n_windows: int
    max_seq_len: int
    stride: int
    logprobs: tuple[float, ...]
    elapsed_s: float

    @property
    def n_scored(self) -> int:
        return len(self.logprobs)

    @property
    def loss(self) -> float:
        return mean_loss(self.logprobs)

    @property
    def tokens_per_s(self) -> float:
        return self.n_scored / self.elapsed_s

    @property
    def speed(self) -> str:
        return (
            f"{self.n_scored} tokens in {self.elapsed_s:.2f} s ({self.tokens_per_s:.1f} tokens/s)"
        )

    def lines(self) -> list[str]:
        return [
            f"tokens scored  {self.n_scored}",
            f"mean loss      {self.loss:.6g} nats a token",
            f"perplexity     {perplexity(self.loss):.6g}",
        ]

    def as_json(self) -> str:
        """One object; a perplexity beyond the range of a float is null."""
        found = perplexity(self.loss)
        return json.dumps(
            {
                "n_tokens": self.n_tokens,
                "n_scored": self.n_scored,
                "n_windows": self.n_windows,
                "max_seq_len": self.max_seq_len,
                "stride": self.stride,
                "loss": self.loss,
                "perplexity": found if math.isfinite(found) else None,
                "elapsed_s": self.elapsed_s,
                "tokens_per_s": self.tokens_per_s,
            }
        )
