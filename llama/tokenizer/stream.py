"""Text of a growing list of token ids, piece by piece. It knows no model and no stop rule."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from llama.tokenizer.base import Tokenizer

# What the "surrogateescape" handler leaves for a byte that is no UTF-8.
_BROKEN_BYTES = dict.fromkeys(range(0xDC80, 0xDD00), "\N{REPLACEMENT CHARACTER}")


def readable(raw: bytes, utf8_errors: str) -> str:
    """A whole text from its bytes; `utf8_errors` is `Tokenizer.utf8_errors`."""
    return raw.decode("utf-8", utf8_errors).translate(_BROKEN_BYTES)


class StreamDecoder:
    """The pieces that `feed` and a last `flush` return add up to `tokenizer.decode` of all ids fed.

    No piece ends inside a character: its bytes are held back until the last one is there. The cost
    of an id does not depend on how many came before, since what is held back is at most three
    bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(tokenizer.utf8_errors)
        self._at_start = True

    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that these ids complete; "" while a character is unfinished."""
        return "".join(map(self._feed_one, token_ids))

    def flush(self) -> str:
        """What was held back, as decode writes it when no more ids follow: U+FFFD."""
        return self._bytes.decode(b"", final=True).translate(_BROKEN_BYTES)

    def _feed_one(self, token_id: int) -> str:
        added = self._tokenizer.token_bytes(token_id)
        if not added:  # an id without text still ends a character that lacks bytes
            return self.flush()
        if self._at_start:
            self._at_start = False
            added = self._without_dummy_space(token_id, added)
        return self._bytes.decode(added).translate(_BROKEN_BYTES)

    def _without_dummy_space(self, token_id: int, added: bytes) -> bytes:
        # SentencePiece puts a space before every text and takes it away again; only decode knows.
        stripped = added.removeprefix(b" ")
        at_start = self._tokenizer.decode(token_id)
        return stripped if at_start == stripped.decode("utf-8", "replace") else added
