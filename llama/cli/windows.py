"""A text that is longer than the context, cut into windows that overlap. No model, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from llama.errors import UsageError


@dataclass(frozen=True)
class Window:
    """Tokens `start`..`stop` - 1 of a text, of which those from `first` on are scored here."""

    start: int
    stop: int
    first: int


def windows(n_tokens: int, *, max_seq_len: int, stride: int) -> list[Window]:
    """Windows of at most `max_seq_len` tokens in which every token but the first is scored once.

    They end `stride` tokens apart, the last one with the text, and reach back as far as they may:
    past the first window a token is given at least max_seq_len - stride tokens before it. Raises
    UsageError for a stride that would leave a token without any, and for a text of one token.
    """
    check_stride(stride, max_seq_len)
    if n_tokens < 2:
        raise UsageError(
            f"the text has {n_tokens} token(s), and the first has no probability; give a longer one"
        )
    found = []
    first, stop = 1, min(max_seq_len, n_tokens)
    while first < n_tokens:
        found.append(Window(max(0, stop - max_seq_len), stop, first))
        first, stop = stop, min(stop + stride, n_tokens)
    return found


def check_stride(stride: int, max_seq_len: int) -> None:
    """Raises UsageError unless a window has new tokens, and one before them."""
    if max_seq_len < 2:
        raise UsageError(f"--max_seq_len must be at least 2 to score, got {max_seq_len}")
    if not 1 <= stride < max_seq_len:
        raise UsageError(
            f"--stride must be from 1 to max_seq_len - 1 = {max_seq_len - 1}, got {stride}"
        )
