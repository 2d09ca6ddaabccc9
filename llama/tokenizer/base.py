"""What every tokenizer offers, and which kind a file is. Of file formats it knows the first bytes.

`Tokenizer(path)` is Meta's spelling: it looks into the file and builds the kind that reads it. One
file beside this one per kind; TOKENIZERS finds it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike, fspath
from os.path import abspath
from typing import Any, ClassVar

from llama.errors import CheckpointError, UsageError
from llama.registry import resolve

TOKENIZERS = {
    "sentencepiece": "llama.tokenizer.sentencepiece:SentencePieceTokenizer",
    "tiktoken": "llama.tokenizer.tiktoken:TiktokenTokenizer",
}


class Tokenizer:
    """Text to token ids and back, with the attributes of Meta's class of this name.

    `n_words` ids, 0 to n_words - 1. `pad_id` is -1 in every published Llama tokenizer: padding is
    no token. `stop_tokens` end an answer. `special_tokens` are the ids that text never encodes to,
    by name.

    Raises CheckpointError when the file cannot be opened or is no tokenizer.
    """

    n_words: int
    bos_id: int
    eos_id: int
    pad_id: int
    stop_tokens: set[int]
    special_tokens: dict[str, int]

    chat_format: ClassVar[str]
    """Name in `llama.tokenizer.chat.CHAT_FORMATS` of what models with this kind were trained on."""
    utf8_errors: ClassVar[str]
    """Codec error handler that treats broken UTF-8 as decode does: "replace" writes one U+FFFD for
    all bytes of a broken character, "surrogateescape" leaves one lone surrogate for each byte."""

    def __new__(cls, model_path: str | PathLike[str]) -> Tokenizer:
        if cls is Tokenizer:
            cls = resolve(TOKENIZERS, tokenizer_kind(model_path), kind="tokenizer")
        return super().__new__(cls)

    def __init__(self, model_path: str | PathLike[str]) -> None:
        self.model_path = fspath(model_path)

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Ids of the text `s`, with bos before and eos after it where asked.

        Text is only text: "</s>" or "<|eot_id|>" in it becomes ordinary tokens, never the special
        one.
        """
        raise NotImplementedError

    def decode(self, t: int | Sequence[int]) -> str:
        """Text of one id or several. Broken UTF-8 becomes U+FFFD. UsageError for an unknown id."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds in the middle of a text; b"" for an id that decode leaves out.

        A character may be spread over several ids, so this is UTF-8 only when they are put
        together.
        """
        raise NotImplementedError

    def _checked_ids(self, t: int | Sequence[int]) -> list[int]:
        ids = [t] if isinstance(t, int) else [int(token_id) for token_id in t]
        for token_id in ids:
            if not 0 <= token_id < self.n_words:
                raise UsageError(
                    f"token id {token_id} is outside 0..{self.n_words - 1} of {self.model_path}"
                )
        return ids


def checked_text(s: Any) -> str:
    """`s`, which must be a str; anything else would be encoded to nonsense without a word."""
    if not isinstance(s, str):
        raise UsageError(f"text to encode must be a str, got {type(s).__name__}: {s!r:.80}")
    return s


def read_tokenizer_file(path: str | PathLike[str], *, limit: int = -1) -> bytes:
    """The first `limit` bytes of the file (all of them for -1); CheckpointError when it cannot be
    opened.
    """
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as error:
        is_folder = isinstance(error, IsADirectoryError)
        hint = "; tokenizer_path must name the tokenizer.model file itself" if is_folder else ""
        raise CheckpointError(
            f"cannot open tokenizer {abspath(path)}: {error.strerror}{hint}"
        ) from error


_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def tokenizer_kind(path: str | PathLike[str]) -> str:
    """The name in TOKENIZERS of what reads this file, told by its first bytes, not by its name."""
    head = read_tokenizer_file(path, limit=1024)
    text = head.lstrip()
    if _TIKTOKEN_LINE.match(head):
        return "tiktoken"
    # A SentencePiece model opens with a length-prefixed piece, and its float scores hold zero
    # bytes.
    if head.startswith(b"\n") and b"\0" in head:
        return "sentencepiece"
    if not text:
        found = "it is empty"
    elif text.startswith(b"version https://git-lfs"):
        found = "it is a git-lfs pointer; fetch the real file with `git lfs pull`"
    elif text.startswith(b"<"):
        found = "it is a web page, perhaps the error page of a failed download"
    elif text.startswith(b"{"):
        found = "tokenizer.json is not supported yet; use the tokenizer.model of the same release"
    else:
        found = f"it starts with {head[:16]!r}"
    raise CheckpointError(
        f"{fspath(path)} is neither a SentencePiece model nor a tiktoken rank file: {found}"
    )
