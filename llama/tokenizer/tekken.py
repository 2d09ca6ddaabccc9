"""Mistral's tekken.json (Nemo and later): special tokens first, byte-level BPE ranks after them.

The file is parsed here and the merging is tiktoken's. Source: the Tekkenizer of mistral-common.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from os import PathLike
from typing import Any

import tiktoken

from llama.errors import CheckpointError
from llama.tokenizer.base import Tokenizer, checked_text
from llama.tokenizer.json_file import is_token_id, read_object
from llama.tokenizer.library import guarded
from llama.tokenizer.tiktoken import check_ranks, encodable_parts

_MAX_SPECIAL = 65_536  # files reserve a thousand, and each gets a name here
# What files up to v7 leave out.
_FIRST_NAMES = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)


class TekkenTokenizer(Tokenizer):
    """A tekken.json. `model` is the tiktoken.Encoding itself, whose ids lack the special tokens.

    Decoding leaves out special tokens.
    """

    utf8_errors = "replace"

    def __init__(self, model_path: str | PathLike[str]) -> None:
        super().__init__(model_path)
        path = self.model_path
        settings = read_object(path)
        config = settings.get("config")
        if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
            raise CheckpointError(f"{path}: config needs a pattern to split texts with")
        self.n_words = _size(config, "default_vocab_size", path=path)
        self._n_special = _size(config, "default_num_special_tokens", path=path)
        ranks = _ranks(settings.get("vocab"), self.n_words - self._n_special, path=path)
        self.special_tokens = _special(settings.get("special_tokens"), self._n_special, path=path)
        self.model = guarded(
            lambda: tiktoken.Encoding(
                name=path, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
            ),
            f"{path} has a pattern that is none",
        )
        self.bos_id, self.eos_id = (self.special_tokens[name] for name in ("<s>", "</s>"))
        self.pad_id = -1
        self.stop_tokens = {self.eos_id}
        # Later versions have other formats, for which only the version is different.
        self.chat_format = "mistral-v3" if config.get("version") == "v3" else None

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        text = checked_text(s)
        ids = [self.bos_id] * bool(bos)
        for part in encodable_parts(text):
            found = guarded(
                partial(self.model.encode, part, disallowed_special=()),
                f"{self.model_path} cannot encode a text of {len(text):,} characters",
            )
            ids += [self._n_special + rank for rank in found]
        return ids + [self.eos_id] * bool(eos)

    def decode(self, t: int | Sequence[int]) -> str:
        added = map(self.token_bytes, self._checked_ids(t))
        # An id without text ends a character that lacks bytes, as it does when streaming.
        runs = (b"".join(run) for has_text, run in groupby(added, key=bool) if has_text)
        return "".join(run.decode("utf-8", self.utf8_errors) for run in runs)

    def token_bytes(self, token_id: int) -> bytes:
        (token_id,) = self._checked_ids(token_id)
        if token_id < self._n_special:
            return b""
        return self.model.decode_single_token_bytes(token_id - self._n_special)


def _size(config: Mapping[str, Any], key: str, *, path: str) -> int:
    value = config.get(key)
    if not is_token_id(value):
        raise CheckpointError(f"{path}: {key} must be a number of tokens, got {value!r:.80}")
    return value


def _ranks(value: Any, n_ranks: int, *, path: str) -> dict[bytes, int]:
    """The first `n_ranks` entries of the vocabulary; files list more than the models have."""
    if not isinstance(value, list) or not 0 < n_ranks <= len(value):
        raise CheckpointError(f"{path} has no vocabulary of at least {n_ranks} tokens")
    ranks: dict[bytes, int] = {}
    for entry in value[:n_ranks]:
        try:
            token, rank = base64.b64decode(entry["token_bytes"], validate=True), entry["rank"]
        except (binascii.Error, KeyError, TypeError, ValueError):
            token, rank = b"", None
        if not token or token in ranks or not is_token_id(rank):
            raise CheckpointError(
                f"{path}: vocabulary entry {entry!r:.80} needs a rank and token_bytes in base64, "
                "of its own"
            )
        ranks[token] = rank
    check_ranks(ranks, name=path)
    return ranks


def _special(value: Any, n_special: int, *, path: str) -> dict[str, int]:
    """Ids by name. What the file does not name is called as in mistral-common."""
    if n_special > _MAX_SPECIAL:
        raise CheckpointError(
            f"{path} has {n_special:,} special tokens; at most {_MAX_SPECIAL:,} are plausible"
        )
    names = {at: f"<SPECIAL_{at}>" for at in range(n_special)}
    if value is None:
        names |= dict(enumerate(_FIRST_NAMES[:n_special]))
    for entry in value if isinstance(value, list) else []:
        name = entry.get("token_str") if isinstance(entry, dict) else None
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_token_id(rank) or rank >= n_special:
            raise CheckpointError(
                f"{path}: special token {entry!r:.80} needs a token_str, and a rank below "
                f"{n_special}"
            )
        names[rank] = name
    ids = {name: token_id for token_id, name in names.items()}
    if len(ids) < n_special or not {"<s>", "</s>"} <= ids.keys():
        raise CheckpointError(f"{path} needs the special tokens <s> and </s>, and each name once")
    return ids
