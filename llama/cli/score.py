"""`llama score`: how well a model predicts a text, as perplexity.

Rank 0 reads and encodes the text. The others are only told its ids.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama.cli.model_options import ModelFlags, ModelOptions
from llama.cli.option_groups import grouped
from llama.cli.ranks import RankCommand, from_rank_0
from llama.cli.score_report import ScoreReport
from llama.cli.terminal import say, token_progress
from llama.cli.typed import typed
from llama.cli.windows import Window, check_stride, windows
from llama.errors import UsageError

if TYPE_CHECKING:
    from llama.llm import LLM

STDIN = "-"


@dataclass(frozen=True)
class Score(RankCommand):
    """Score `text`, or None for what is on rank 0's stdin; rank 0 prints what came of it."""

    model: ModelOptions
    text: str | None
    stride: int | None
    as_json: bool

    def run(self) -> None:
        llm = self.model.load()
        token_ids = from_rank_0(self._token_ids(llm) if llm.context.rank == 0 else [], llm)
        max_seq_len = llm.engine.config.max_seq_len
        stride = max_seq_len // 2 if self.stride is None else self.stride
        parts = windows(len(token_ids), max_seq_len=max_seq_len, stride=stride)
        began = time.perf_counter()
        logprobs = self._logprobs(llm, token_ids, parts)
        if llm.context.rank != 0:
            return
        report = ScoreReport(
            n_tokens=len(token_ids),
            n_windows=len(parts),
            max_seq_len=max_seq_len,
            stride=stride,
            logprobs=logprobs,
            elapsed_s=time.perf_counter() - began,
        )
        if self.as_json:
            print(report.as_json(), flush=True)
        else:
            print("\n".join(report.lines()), flush=True)
            say(report.speed)

    def _token_ids(self, llm: LLM) -> list[int]:
        text = self.text
        if text is None:
            text = _checked("stdin", sys.stdin.buffer.read())
        return llm.tokenizer.encode_prompt(text)

    def _logprobs(self, llm: LLM, token_ids: list[int], parts: list[Window]) -> tuple[float, ...]:
        """One a token, without the first."""
        logprobs: list[float] = []
        with token_progress(
            "scoring", total_tokens=len(token_ids) - 1, is_shown=llm.context.rank == 0
        ) as advance:
            for at in range(0, len(parts), self.model.max_batch_size):
                group = parts[at : at + self.model.max_batch_size]
                outputs = llm.score([token_ids[part.start : part.stop] for part in group])
                for part, output in zip(group, outputs, strict=True):
                    logprobs += output.scored[part.first - part.start - 1 :]
                    advance(part.stop - part.first)
        return tuple(logprobs)


def _checked(name: str, data: bytes) -> str:
    """`data` as text. Raises UsageError when there is none, or it is not UTF-8."""
    if not data:
        raise UsageError(f"{name} is empty; there is nothing to score")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}; convert it "
            f"to UTF-8 first"
        ) from None


def _read(path: str) -> str:
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read {path}: {reason}; name a text file, or - for stdin"
        ) from None
    return _checked(path, data)


@typed
@grouped
def score(
    ckpt_dir: str,
    file: str,
    *,
    stride: int | None = None,
    json: bool = False,
    model: ModelFlags,
    max_batch_size: int = 8,
) -> Score:
    """Print the perplexity of a text: exp of the mean negative log-probability of its tokens.

    A text longer than max_seq_len is cut into windows of that length that overlap. Every token is
    scored once, in the window that gives it the most context; the first one has none.

    Args:
        ckpt_dir: folder of the checkpoint
        file: text to score, in UTF-8; "-" reads stdin
        stride: tokens by which windows move on, so that each token is given at least max_seq_len
            less these; by default half of max_seq_len
        json: one JSON object instead
        max_seq_len: longest window, in tokens; by default 2048, or as far as the positions of the
            model go
        max_batch_size: windows that are scored at once
    """
    if model.max_seq_len is not None:
        check_stride(model.max_seq_len // 2 if stride is None else stride, model.max_seq_len)
    is_reader = os.environ.get("RANK", "0") == "0"
    return Score(
        ModelOptions(**vars(model), ckpt_dir=ckpt_dir, max_batch_size=max_batch_size),
        _read(file) if is_reader and file != STDIN else None,
        stride,
        json,
    )
