"""Hugging Face's tokenizer.json: BPE, byte level (Llama 3) or SentencePiece's (Llama 2, Mistral).

The file is checked and relieved of its added tokens here; the merging is the library's.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from llama.errors import CheckpointError
from llama.tokenizer.chat.pick import format_of_tokens
from llama.tokenizer.chat.tags import STEP
from llama.tokenizer.json_file import is_token_id, read_object
from llama.tokenizer.library import (
    LibraryTokenizer,
    check_bytes,
    checked_vocabulary,
    guarded,
)
from llama.tokenizer.pieces import Pieces, steps
from llama.tokenizer.roles import read_roles

_LEFT_OUT: dict[str, Any] = {
    "added_tokens": [],
    "post_processor": None,
    "truncation": None,
    "padding": None,
}


class HfTokenizer(LibraryTokenizer):
    """A tokenizer.json. Which tokens begin and end a text is in the files beside it; see `roles`.

    Where its special tokens do not tell the `chat_format`, it is Llama 2's for SentencePiece's
    vocabularies.
    """

    def __init__(self, model_path: str | PathLike[str]) -> None:
        super().__init__(model_path)
        path = self.model_path
        settings = read_object(path)
        model = _bpe(settings, path=path)
        kept = {**settings, **_LEFT_OUT, "model": {**model, "dropout": None}}
        library = guarded(
            lambda: tokenizers.Tokenizer.from_str(json.dumps(kept)),
            f"{path} is not a whole tokenizer.json; fetch it again",
        )
        vocabulary = checked_vocabulary(model.get("vocab"), path=path)
        unk_token = _unknown(model, vocabulary, path=path)
        pieces = _pieces(settings, path=path)
        encodes_bytes = pieces.byte_of or model.get("byte_fallback")
        check_bytes(pieces, vocabulary if encodes_bytes else (), unk_token=unk_token, path=path)
        added, silent = _added_tokens(settings.get("added_tokens"), vocabulary, path=path)
        ids = {**vocabulary, **added}
        roles = read_roles(Path(path).parent, ids, n_words=1 + max(ids.values()))
        self._set_up(
            library,
            vocabulary=vocabulary,
            added={name: token_id for name, token_id in added.items() if name != unk_token},
            silent=silent - {unk_token},
            pieces=pieces,
            roles=roles,
        )
        if roles.adds_bos is None:
            begins = _first_of_template(settings.get("post_processor"))
            self.adds_bos = begins is not None and ids.get(begins) == roles.bos_id
        else:
            self.adds_bos = roles.adds_bos
        default = None if pieces.byte_of else "llama2"
        self.chat_format = format_of_tokens(self.special_tokens, path, default=default)
        self.step_id = self.special_tokens.get(STEP)
        if self.step_id is not None:
            self.stop_tokens.add(self.step_id)


def _first_of_template(processor: Any) -> str | None:
    """The token that the template of one text puts before it, None where there is none.

    The library never reads this section, so it may be anything.
    """
    listed = processor.get("processors") if isinstance(processor, dict) else None
    for step in listed if isinstance(listed, list) else [processor]:
        single = step.get("single") if isinstance(step, dict) else None
        first = single[0] if isinstance(single, list) and single else None
        token = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(token, dict):
            return str(token.get("id"))
    return None


def _bpe(settings: dict[str, Any], *, path: str) -> dict[str, Any]:
    model = settings.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f'{path} is no tokenizer.json: it has no section "model"')
    if model.get("type", "BPE") != "BPE":
        raise CheckpointError(
            f"{path} holds a {model['type']!r:.40} model, and only BPE is supported; "
            "use the tokenizer.model of the same release"
        )
    return model


def _pieces(settings: dict[str, Any], *, path: str) -> Pieces:
    """From the decoder; the steps before the model must write pieces of the same kind."""
    pieces = Pieces.of_decoder(settings.get("decoder"), path=path)
    before = [*steps(settings.get("normalizer")), *steps(settings.get("pre_tokenizer"))]
    if bool(pieces.byte_of) != any(step["type"] == "ByteLevel" for step in before):
        raise CheckpointError(f"{path} encodes and decodes differently: only one is byte level")
    return pieces


def _unknown(model: dict[str, Any], vocabulary: dict[str, int], *, path: str) -> str | None:
    """Name of the token for what no other stands for; BPE drops such text where there is none."""
    unk_token: str | None = model.get("unk_token")
    if unk_token is not None and unk_token not in vocabulary:
        raise CheckpointError(f"{path}: unk_token {unk_token!r:.80} is no token of its vocabulary")
    return unk_token


def _added_tokens(
    value: Any, vocabulary: dict[str, int], *, path: str
) -> tuple[dict[str, int], set[str]]:
    """The added tokens by name, and which of them are special. An id belongs to one name."""
    added: dict[str, int] = {}
    special: set[str] = set()
    for entry in value if isinstance(value, list) else []:
        content = entry.get("content") if isinstance(entry, dict) else None
        token_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or not is_token_id(token_id):
            raise CheckpointError(f"{path}: added token {entry!r:.120} needs a content and an id")
        if content in added or vocabulary.get(content, token_id) != token_id:
            raise CheckpointError(f"{path} gives {content[:80]!r} two ids")
        added[content] = token_id
        if entry.get("special"):
            special.add(content)
    name_of = {token_id: name for name, token_id in vocabulary.items()}
    for name, token_id in added.items():
        if name_of.setdefault(token_id, name) != name:
            raise CheckpointError(f"{path}: id {token_id} is {name_of[token_id]!r} and {name!r}")
    return added, special
