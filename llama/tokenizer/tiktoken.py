"""Llama 3's tokenizer: byte-level BPE ranks in a text file, plus 256 special tokens after them.

The file is parsed here and the merging is tiktoken's; nothing is ever downloaded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from os import PathLike
from typing import ClassVar, Literal

import tiktoken

from llama.errors import CheckpointError, UsageError
from llama.tokenizer.base import Tokenizer, checked_text, read_tokenizer_file

# Limits of the merging code: longer texts make it panic, longer runs make it quadratic.
MAX_ENCODE_CHARS = 400_000
MAX_RUN_CHARS = 25_000

_FIRST_NAMES = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>",
    "<|reserved_special_token_3|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
)
# Llama 3.1 renamed reserved_special_token_4 to eom_id; the place did not move.
_EOM_PLACE = 8
_RUN = re.compile(r"\s+|\S+")


class TiktokenTokenizer(Tokenizer):
    """A file of "base64-bytes rank" lines. `model` is the tiktoken.Encoding itself.

    Special tokens carry the names of Llama 3; later releases renamed some reserved ones and moved
    none. So `stop_tokens` has end_of_text, eot_id and 3.1's end-of-message, which Llama 3.0 never
    writes.
    """

    chat_format = "llama3"
    utf8_errors = "replace"
    num_reserved_special_tokens: ClassVar[int] = 256
    pat_str: ClassVar[str] = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def __init__(self, model_path: str | PathLike[str]) -> None:
        super().__init__(model_path)
        ranks = parse_ranks(read_tokenizer_file(self.model_path), name=self.model_path)
        n_unnamed = self.num_reserved_special_tokens - len(_FIRST_NAMES)
        names = [
            *_FIRST_NAMES,
            *(f"<|reserved_special_token_{i}|>" for i in range(5, 5 + n_unnamed)),
        ]
        self.special_tokens = {name: len(ranks) + place for place, name in enumerate(names)}
        self.model = tiktoken.Encoding(
            name=self.model_path,
            pat_str=self.pat_str,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )
        self.n_words = self.model.n_vocab
        self.bos_id = self.special_tokens["<|begin_of_text|>"]
        self.eos_id = self.special_tokens["<|end_of_text|>"]
        self.pad_id = -1
        self.stop_tokens = {
            self.eos_id,
            len(ranks) + _EOM_PLACE,
            self.special_tokens["<|eot_id|>"],
        }

    def encode(
        self,
        s: str,
        bos: bool,
        eos: bool,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """As in `Tokenizer`; names in `allowed_special` are encoded to their token where `s` has
        them.

        UsageError when `s` contains a name that is in `disallowed_special`.
        """
        ids = [self.bos_id] * bool(bos)
        for part in encodable_parts(checked_text(s)):
            try:
                ids += self.model.encode(
                    part, allowed_special=allowed_special, disallowed_special=disallowed_special
                )
            except ValueError as error:
                raise UsageError(str(error)) from error
        return ids + [self.eos_id] * bool(eos)

    def decode(self, t: int | Sequence[int]) -> str:
        return self.model.decode(self._checked_ids(t))

    def token_bytes(self, token_id: int) -> bytes:
        (token_id,) = self._checked_ids(token_id)
        return self.model.decode_single_token_bytes(token_id)


def parse_ranks(data: bytes, *, name: str) -> dict[bytes, int]:
    """Token bytes -> rank. A broken file is a CheckpointError with `name` and the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        encoded, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise CheckpointError(
                f'{name} line {number} is not "base64 rank": {line[:80]!r}; fetch the file again'
            ) from None
    check_ranks(ranks, name=name)
    return ranks


def check_ranks(ranks: Mapping[bytes, int], *, name: str) -> None:
    """CheckpointError unless ranks are 0 to n - 1, each once, since special tokens are numbered
    around them; and each single byte is a token, since the merging code panics on text that has
    none for a byte.
    """
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(
            f"{name} has {len(ranks)} tokens but not the ranks 0 to {len(ranks) - 1}, once each; "
            "fetch the file again"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(f"{name} has no token for byte 0x{missing[0]:02x}; it is incomplete")


def encodable_parts(s: str) -> Iterator[str]:
    """`s` in parts that keep to both limits; a run is all space or all non-space."""
    for offset in range(0, len(s), MAX_ENCODE_CHARS):
        block = s[offset : offset + MAX_ENCODE_CHARS]
        start = 0
        for run in _RUN.finditer(block):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield block[start:cut]
                start = cut
        yield block[start:]
