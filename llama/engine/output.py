"""The text of running sequences, token by token, and the stop strings in it. Knows no scheduler.

Text is a pure function of a sequence's output ids (`final_text`), so every rank that has the ids
can tell it; the incremental form here only exists to find stop strings early and to stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llama.engine.sequence import Sequence
from llama.tokenizer import Tokenizer
from llama.tokenizer.stream import StreamDecoder


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """`text` up to the earliest of the stop strings, and whether there was one."""
    found = [at for at in (text.find(string) for string in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may yet turn out to begin a stop string."""
    longest = max((len(string) for string in stop), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(string.startswith(tail) for string in stop):
            return length
    return 0


@dataclass
class _Stream:
    decoder: StreamDecoder
    text: str = ""
    n_tokens: int = 0
    n_emitted: int = 0


class OutputProcessor:
    """Text so far of every unfinished sequence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._streams: dict[int, _Stream] = {}

    def update(self, sequence: Sequence) -> bool:
        """Take in the sequence's new tokens; whether its text now has one of its stop strings."""
        stream = self._streams.get(sequence.seq_id)
        if stream is None:
            stream = _Stream(StreamDecoder(self._tokenizer))
            self._streams[sequence.seq_id] = stream
        new_ids = sequence.output_token_ids[stream.n_tokens :]
        stream.n_tokens += len(new_ids)
        stream.text += stream.decoder.feed(new_ids)
        if sequence.finish_reason is not None:
            stream.text += stream.decoder.flush()
        stream.text, stopped = cut_at_stop(stream.text, sequence.params.stop)
        return stopped

    def new_text(self, sequence: Sequence) -> str:
        """Text that has not been handed out yet; what may begin a stop string is held back."""
        stream = self._streams[sequence.seq_id]
        end = len(stream.text)
        if sequence.finish_reason is None:
            end -= held_back(stream.text, sequence.params.stop)
        text = stream.text[stream.n_emitted : end]
        stream.n_emitted = max(end, stream.n_emitted)
        return text

    def forget_finished(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            if sequence.is_finished:
                self._streams.pop(sequence.seq_id, None)

    def reset(self) -> None:
        """Forget every sequence."""
        self._streams.clear()


def final_text(tokenizer: Tokenizer, token_ids: list[int], stop: tuple[str, ...]) -> str:
    """The text of a finished output: decoded in one go and cut at the first stop string."""
    return cut_at_stop(tokenizer.decode(token_ids), stop)[0]
