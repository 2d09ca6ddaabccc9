"""`make quality`: what each quantisation costs the demo model in quality, and saves in bytes.

Perplexity and logits over texts of its world that it was not trained on, and how many of the facts
of its exam it still has right. Prints a table; with --write, into docs/quantisation.md as well.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama.engine.sequence import SamplingParams
from llama.llm import LLM

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo_model"
PAGE = ROOT / "docs" / "quantisation.md"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
METHODS = (None, "int8:32", "int8", "int8:128", "int8_dynamic", "int4", "int4:64", "int4:128")
N_TEXTS = 100
_SEED = 20_000
_COLUMNS = (
    "weights held as",
    "bytes held",
    "perplexity",
    "KL divergence",
    "largest logit error",
    "facts right",
)


@dataclass(frozen=True)
class Quality:
    """`bytes_held` are all weights, the embedding included. Against fp32: `divergence` is the mean
    over tokens of KL(fp32 || this), in nats, and `logit_error` the largest of any logit.
    """

    wish: str | None
    bytes_held: int
    perplexity: float
    divergence: float
    logit_error: float
    n_right: int
    n_facts: int

    def row(self) -> tuple[str, ...]:
        return (
            f"`{self.wish}`" if self.wish else "fp32, as they are",
            f"{self.bytes_held:,}",
            f"{self.perplexity:.4f}",
            f"{self.divergence:.6f}" if self.wish else "",
            f"{self.logit_error:.3f}" if self.wish else "",
            f"{self.n_right} of {self.n_facts}",
        )


def fresh_texts() -> list[str]:
    """Texts of the demo model's world, from a seed that it was not trained on."""
    folder = str(DEMO)
    sys.path.insert(0, folder)
    try:
        from corpus import TEXTS  # type: ignore[import-not-found]
    finally:
        sys.path.remove(folder)
    rng = random.Random(_SEED)
    writers, weights = zip(*TEXTS, strict=True)
    return [rng.choices(writers, weights)[0](rng) for _ in range(N_TEXTS)]


def build(wish: str | None) -> LLM:
    return LLM(
        DEMO, device="cpu", dtype="float32", max_seq_len=256, max_batch_size=32, quantize=wish
    )


def perplexity(llm: LLM, texts: Sequence[str]) -> float:
    scores = [value for output in llm.score(texts) for value in output.logprobs[1:] if value]
    return math.exp(-sum(scores) / len(scores))


def logits(llm: LLM, texts: Sequence[str]) -> list[Tensor]:
    """Of every token of each text, (tokens, vocabulary)."""
    ids = [llm.tokenizer.encode_prompt(text) for text in texts]
    return [llm.engine.forward_rows(torch.tensor([row]), 0)[0] for row in ids]


def divergence(plain: Tensor, ours: Tensor) -> float:
    """Mean over tokens of KL(plain || ours), nats."""
    p, q = plain.double().log_softmax(-1), ours.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def facts_right(llm: LLM) -> tuple[int, int]:
    """Of those that are asked as the beginning of a text."""
    facts = [fact for fact in json.loads((DEMO / "facts.json").read_text()) if "prompt" in fact]
    params = SamplingParams(temperature=0.0, max_tokens=24)
    outputs = llm.generate([fact["prompt"] for fact in facts], params)
    texts = [output.text.strip() for output in outputs]
    right = [text.startswith(fact["answer"]) for text, fact in zip(texts, facts, strict=True)]
    return sum(right), len(right)


def measure(wish: str | None, texts: Sequence[str], plain: Sequence[Tensor]) -> Quality:
    llm = build(wish)
    ours, theirs = torch.cat(logits(llm, texts)), torch.cat(list(plain))
    n_right, n_facts = facts_right(llm)
    return Quality(
        wish,
        llm.load_report.bytes_held,
        perplexity(llm, texts),
        divergence(theirs, ours),
        float((ours - theirs).abs().max()),
        n_right,
        n_facts,
    )


def table(found: Sequence[Quality]) -> str:
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS), *[quality.row() for quality in found]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    args = parser.parse_args()
    texts = fresh_texts()
    plain = logits(build(None), texts)
    shown = table([measure(wish, texts, plain) for wish in METHODS])
    print(shown)
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")


if __name__ == "__main__":
    main()
