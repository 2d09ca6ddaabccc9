"""What every tokenizer offers, and which kind a file is. Of file formats it knows the first bytes.

`Tokenizer(path)` is Meta's spelling: it looks into the file and builds the kind that reads it. One
file beside this one per kind; TOKENIZERS finds it. `path` may also be a folder; see `find`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from operator import index
from os import PathLike, fspath
from os.path import abspath, basename, isdir
from pathlib import Path
from typing import Any

from llama.errors import CheckpointError, UsageError
from llama.files.signature import accident, regular_file
from llama.registry import resolve
from llama.tokenizer.find import find_tokenizer

TOKENIZERS = {
    "gpt2": "llama.tokenizer.gpt2:Gpt2Tokenizer",
    "hf": "llama.tokenizer.hf:HfTokenizer",
    "sentencepiece": "llama.tokenizer.sentencepiece:SentencePieceTokenizer",
    "tekken": "llama.tokenizer.tekken:TekkenTokenizer",
    "tiktoken": "llama.tokenizer.tiktoken:TiktokenTokenizer",
}


class Tokenizer:
    """Text to token ids and back, with the attributes of Meta's class of this name.

    `n_words` ids, 0 to n_words - 1. `pad_id` is -1 in every published Llama tokenizer: padding is
    no token. `stop_tokens` end an answer. `special_tokens` are the ids that text never encodes to,
    by name. `files` are the paths of all that was read, `model_path` first.

    Raises CheckpointError when the file cannot be opened or is no tokenizer, or the folder has
    none.
    """

    n_words: int
    bos_id: int
    eos_id: int
    pad_id: int
    stop_tokens: set[int]
    special_tokens: dict[str, int]

    adds_bos: bool = True
    """Whether the model was trained on texts that begin with bos; see `encode_prompt`."""
    files: tuple[str, ...]
    chat_format: str | None
    """Name in `llama.tokenizer.chat.CHAT_FORMATS` of what models with this tokenizer were trained
    on; None where that is not known."""
    prefix_id: int | None = None
    suffix_id: int | None = None
    middle_id: int | None = None
    eot_id: int | None = None
    step_id: int | None = None
    """Code Llama's tokens for infilling, and 70B's end of a turn; None where they do not exist."""
    utf8_errors: str
    """Codec error handler that treats broken UTF-8 as decode does: "replace" writes one U+FFFD for
    all bytes of a broken character, "surrogateescape" leaves one lone surrogate for each byte."""

    def __new__(cls, model_path: str | PathLike[str]) -> Tokenizer:
        if cls is Tokenizer:
            cls = resolve(TOKENIZERS, tokenizer_kind(_file(model_path)), kind="tokenizer")
        return super().__new__(cls)

    def __init__(self, model_path: str | PathLike[str]) -> None:
        self.model_path = _file(model_path)
        self.files = (self.model_path,)

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Ids of the text `s`, with bos before and eos after it where asked.

        Text is only text: "</s>" or "<|eot_id|>" in it becomes ordinary tokens, never the special
        one.
        """
        raise NotImplementedError

    def encode_prompt(self, s: str) -> list[int]:
        """Ids of a text to continue: after bos where `adds_bos`, or where the text is empty."""
        return self.encode(s, self.adds_bos or not s, False)

    def decode(self, t: int | Sequence[int]) -> str:
        """Text of one id or several. Broken UTF-8 becomes U+FFFD. UsageError for an unknown id."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds in the middle of a text; b"" for an id that decode leaves out.

        A character may be spread over several ids, so this is UTF-8 only when they are put
        together.
        """
        raise NotImplementedError

    @property
    def sha256(self) -> str:
        """Digest of `files`: equal where two tokenizers encode and stop alike."""
        digests = [hashlib.sha256(read_tokenizer_file(path)).digest() for path in self.files]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def _checked_ids(self, t: int | Sequence[int]) -> list[int]:
        try:
            ids = [index(token_id) for token_id in (t if isinstance(t, Iterable) else (t,))]
        except TypeError as error:
            raise UsageError(f"token ids must be integers, got {t!r:.80}") from error
        for token_id in ids:
            if not 0 <= token_id < self.n_words:
                raise UsageError(
                    f"token id {token_id} is outside 0..{self.n_words - 1} of {self.model_path}"
                )
        return ids


def _file(path: str | PathLike[str]) -> str:
    return fspath(find_tokenizer(path)) if isdir(path) else fspath(path)


def checked_text(s: Any) -> str:
    """`s`, which must be a str without lone surrogates, since they have no UTF-8.

    Anything else would be encoded to something else without a word.
    """
    if not isinstance(s, str):
        raise UsageError(f"text to encode must be a str, got {type(s).__name__}: {s!r:.80}")
    try:
        s.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text is not valid Unicode: {s!r:.80}") from error
    return s


def read_tokenizer_file(path: str | PathLike[str], *, limit: int = -1) -> bytes:
    """The first `limit` bytes of the file (all of them for -1); CheckpointError when it cannot be
    opened.
    """
    place = Path(abspath(path))
    regular_file(place)
    try:
        with open(place, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise CheckpointError(f"cannot open {place}: {error.strerror}") from error


_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_JSON_VOCABULARY = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\d')
_TEKKEN = re.compile(rb'\{\s*"config"\s*:\s*\{')


def tokenizer_kind(path: str | PathLike[str]) -> str:
    """The name in TOKENIZERS of what reads this file, told by its first bytes.

    Its name counts for tekken.json alone, which is JSON like others.
    """
    head = read_tokenizer_file(path, limit=1024)
    text = head.lstrip()
    if _TIKTOKEN_LINE.match(head):
        return "tiktoken"
    # A SentencePiece model opens with a length-prefixed piece, and its float scores hold zero
    # bytes.
    if head.startswith(b"\n") and b"\0" in head:
        return "sentencepiece"
    if _TEKKEN.match(text) or basename(path) == "tekken.json":
        return "tekken"
    if text.startswith(b"{"):
        return "gpt2" if _JSON_VOCABULARY.match(text) else "hf"
    if cause := accident(text):
        found = f"it is {cause}"
    elif text.startswith(b"#version"):
        found = "it lists merges; give the vocab.json that lies beside it"
    else:
        found = f"it starts with {head[:16]!r}"
    raise CheckpointError(
        f"{fspath(path)} is none of SentencePiece model, tiktoken rank file, tekken.json, "
        f"tokenizer.json and vocab.json: {found}"
    )
