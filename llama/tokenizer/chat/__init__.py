"""From a dialog to the token ids that a chat model was trained on: one function per format.

A dialog is encoded part by part, and text never encodes to a special token, so nothing that a user
writes can end a turn or start another. Some formats mark turns with ordinary text, which cannot
have that property; see `tags`.
"""

from __future__ import annotations

from typing import cast

from llama.errors import UsageError
from llama.registry import resolve
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat.llama3 import ChatFormat
from llama.tokenizer.chat.messages import Dialog, Message, Role
from llama.tokenizer.chat.pick import pick_chat_format
from llama.tokenizer.chat.tags import (
    B_INST,
    B_SYS,
    E_INST,
    E_SYS,
    SPECIAL_TAGS,
    has_special_tags,
)

__all__ = [
    "B_INST",
    "B_SYS",
    "CHAT_FORMATS",
    "E_INST",
    "E_SYS",
    "SPECIAL_TAGS",
    "ChatFormat",
    "Dialog",
    "Message",
    "Role",
    "encode_dialog",
    "has_special_tags",
    "pick_chat_format",
]

CHAT_FORMATS = {
    "codellama": "llama.tokenizer.chat.llama2:encode_llama2",  # 7B to 34B
    "codellama70b": "llama.tokenizer.chat.codellama70b:encode_codellama70b",
    "llama2": "llama.tokenizer.chat.llama2:encode_llama2",
    "llama3": "llama.tokenizer.chat.llama3:encode_llama3",
    "mistral-v1": "llama.tokenizer.chat.mistral:encode_mistral_v1",
    "mistral-v2": "llama.tokenizer.chat.mistral:encode_mistral_v3",  # they differ in tools alone
    "mistral-v3": "llama.tokenizer.chat.mistral:encode_mistral_v3",
}


def encode_dialog(
    tokenizer: Tokenizer, dialog: Dialog, *, chat_format: str | None = None
) -> list[int]:
    """Prompt ids that ask for the next assistant message, by default in the tokenizer's format.

    Raises UsageError when the dialog is not one that the format can express or there is no format,
    UnknownNameError for a `chat_format` that CHAT_FORMATS does not list.
    """
    chat_format = chat_format or tokenizer.chat_format
    if chat_format is None:
        raise UsageError(
            f"{tokenizer.model_path} belongs to models without a known chat format; complete text "
            f"instead, or name a chat_format: {', '.join(sorted(CHAT_FORMATS))}"
        )
    encode = resolve(CHAT_FORMATS, chat_format, kind="chat format")
    return cast("list[int]", encode(tokenizer, dialog))
