"""What tokenizers that merge with the `tokenizers` library share. It knows no file format.

The library encodes only. It is never told which tokens are special or added, so no text becomes
one of them; and decoding is done here, byte by byte, so that streaming can do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NoReturn, TypeVar

import tokenizers

from llama.errors import CheckpointError, UsageError
from llama.tokenizer.base import Tokenizer, checked_text
from llama.tokenizer.json_file import is_token_id
from llama.tokenizer.pieces import Pieces
from llama.tokenizer.roles import Roles
from llama.tokenizer.stream import readable

T = TypeVar("T")


class LibraryTokenizer(Tokenizer):
    """`model` is the tokenizers.Tokenizer itself, without added tokens and without a template.

    Every added token is kept out of texts, also one whose file calls it not special: <|im_start|>
    is such a one in some releases. Decoding leaves out the special ones, as the library does for
    skip_special_tokens.
    """

    model: tokenizers.Tokenizer

    def _set_up(
        self,
        model: tokenizers.Tokenizer,
        *,
        vocabulary: Mapping[str, int],
        added: Mapping[str, int],
        silent: Iterable[str],
        pieces: Pieces,
        roles: Roles,
    ) -> None:
        """`added` are the tokens that no text encodes to, `silent` names those without a text."""
        self.model = model
        self.n_words = 1 + max((*vocabulary.values(), *added.values()))
        self.bos_id = roles.bos_id
        self.eos_id = roles.eos_id
        self.pad_id = -1
        self.stop_tokens = set(roles.stop_tokens)
        self.special_tokens = dict(added)
        self.files = (*self.files, *roles.files)
        self.utf8_errors = pieces.utf8_errors
        self._pieces = pieces
        silent_ids = {added[name] for name in silent}
        self._added_bytes = {
            token_id: b"" if token_id in silent_ids else name.encode("utf-8", "replace")
            for name, token_id in added.items()
        }
        self._silent_ids = frozenset(silent_ids)

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        text = checked_text(s)
        encoding = guarded(
            lambda: self.model.encode(text, add_special_tokens=False),
            f"{self.model_path} cannot encode a text of {len(text):,} characters",
        )
        ids: list[int] = encoding.ids
        if not self._silent_ids.isdisjoint(ids):
            # Pieces are looked up whole where the file says "ignore_merges".
            raise UsageError(
                f"text contains the name of a special token, and {self.model_path} has no other "
                f"way to write it: {s!r:.80}"
            )
        return [self.bos_id] * bool(bos) + ids + [self.eos_id] * bool(eos)

    def decode(self, t: int | Sequence[int]) -> str:
        added = map(self.token_bytes, self._checked_ids(t))
        # An id without text ends a character that lacks bytes, as it does when streaming.
        runs = [b"".join(run) for has_text, run in groupby(added, key=bool) if has_text]
        if runs and self._pieces.drops_space:
            runs[0] = runs[0].removeprefix(b" ")
        return "".join(readable(run, self.utf8_errors) for run in runs)

    def token_bytes(self, token_id: int) -> bytes:
        (token_id,) = self._checked_ids(token_id)
        if token_id in self._added_bytes:
            return self._added_bytes[token_id]
        piece: str | None = self.model.id_to_token(token_id)
        return b"" if piece is None else self._pieces.to_bytes(piece)


def checked_vocabulary(value: Any, *, path: str) -> dict[str, int]:
    """`value` as token -> id. CheckpointError unless ids are integers, each given once."""
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{path} has no vocabulary of tokens and their ids")
    for token, token_id in value.items():
        if not is_token_id(token_id):
            raise CheckpointError(f"{path}: token {token[:80]!r} has the id {token_id!r:.80}")
    if len(set(value.values())) < len(value):
        raise CheckpointError(f"{path} gives one id to several tokens")
    return value


def check_bytes(
    pieces: Pieces, vocabulary: Container[str], *, unk_token: str | None, path: str
) -> None:
    """CheckpointError when some text would be lost without a word."""
    missing = pieces.missing_bytes(vocabulary)
    if missing and unk_token is None:
        raise CheckpointError(
            f"{path} has no token for byte 0x{missing[0]:02x} and none for what is unknown; "
            "it is incomplete, fetch it again"
        )


def guarded(call: Callable[[], T], what: str) -> T:
    """The library's answer; CheckpointError that begins with `what` for whatever it raises.

    Its errors are bare Exceptions, and a panic (a pattern of the file that backtracks without end)
    is a BaseException of a class that cannot be imported.
    """
    try:
        return call()
    except Exception as error:
        _refuse(what, error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        _refuse(what, error)


def _refuse(what: str, error: BaseException) -> NoReturn:
    raise CheckpointError(f"{what}: {error!s:.300}") from error
