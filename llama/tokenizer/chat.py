"""From a dialog to the token ids that a chat model was trained on: one function per format.

A dialog is encoded part by part, and text never encodes to a special token, so nothing that a user
writes can end a turn or start another. Llama 2 marks its turns with ordinary text, which cannot
have that property: `has_special_tags` is Meta's check for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypedDict, cast

from llama.errors import UsageError
from llama.registry import resolve
from llama.tokenizer.base import Tokenizer

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    role: Role
    content: str


Dialog = Sequence[Message]

CHAT_FORMATS = {
    "llama2": "llama.tokenizer.chat:encode_llama2",
    "llama3": "llama.tokenizer.chat:encode_llama3",
}

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = [B_INST, E_INST, "<<SYS>>", "<</SYS>>"]


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


def has_special_tags(dialog: Dialog) -> bool:
    """Whether any message contains a tag of the Llama 2 layout, and so could forge a turn."""
    return any(tag in message["content"] for tag in SPECIAL_TAGS for message in dialog)


def encode_llama2(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """`bos [INST] user [/INST] answer eos` per finished exchange, then the open one without eos."""
    _check_messages(dialog)
    messages = _merge_system(dialog)
    roles = [message["role"] for message in messages]
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(roles)):
        raise UsageError(
            "model only supports 'system', 'user' and 'assistant' roles, "
            "starting with 'system', then 'user' and alternating (u/a/u/a/u...), "
            f"got {[message['role'] for message in dialog]}"
        )
    if roles[-1] != "user":
        raise UsageError(f"Last message must be from user, got {roles[-1]}")
    texts = [message["content"].strip() for message in messages]
    ids: list[int] = []
    for question, answer in list(pairwise(texts))[::2]:
        exchange = f"{B_INST} {question} {E_INST} {answer} "
        ids += tokenizer.encode(exchange, True, True)
    return ids + tokenizer.encode(f"{B_INST} {texts[-1]} {E_INST}", True, False)


def _merge_system(dialog: Dialog) -> list[Message]:
    """The dialog with a leading system message put before the text of the next message."""
    if dialog[0]["role"] != "system" or len(dialog) == 1:
        return list(dialog)
    system, first, *rest = dialog
    content = f"{B_SYS}{system['content']}{E_SYS}{first['content']}"
    return [Message(role=first["role"], content=content), *rest]


def encode_llama3(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """Every message under its header and closed by eot_id, then the header of the answer."""
    return ChatFormat(tokenizer).encode_dialog_prompt(dialog)


class ChatFormat:
    """Llama 3's layout, under Meta's names. Any role is allowed, as there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if "<|eot_id|>" not in tokenizer.special_tokens:
            raise UsageError(
                f"the Llama 3 chat format needs Llama 3's special tokens; {tokenizer.model_path} "
                f"has only {sorted(tokenizer.special_tokens)}"
            )
        self.tokenizer = tokenizer

    def encode_header(self, message: Message) -> list[int]:
        """The role between header tokens, and an empty line. `content` is not read."""
        special = self.tokenizer.special_tokens
        role = self.tokenizer.encode(message["role"], False, False)
        end = self.tokenizer.encode("\n\n", False, False)
        return [special["<|start_header_id|>"], *role, special["<|end_header_id|>"], *end]

    def encode_message(self, message: Message) -> list[int]:
        """Header, stripped content, eot_id."""
        content = self.tokenizer.encode(message["content"].strip(), False, False)
        eot_id = self.tokenizer.special_tokens["<|eot_id|>"]
        return [*self.encode_header(message), *content, eot_id]

    def encode_dialog_prompt(self, dialog: Dialog) -> list[int]:
        """The whole dialog from begin_of_text, open for the assistant's answer."""
        _check_messages(dialog)
        ids = [self.tokenizer.bos_id]
        for message in dialog:
            ids += self.encode_message(message)
        return ids + self.encode_header(Message(role="assistant", content=""))


def _check_messages(dialog: Dialog) -> None:
    if isinstance(dialog, str) or not isinstance(dialog, Sequence):
        raise UsageError(f"a dialog must be a list of messages, got {type(dialog).__name__}")
    if not dialog:
        raise UsageError("a dialog needs at least one message, got none")
    for place, message in enumerate(dialog):
        if not isinstance(message, dict):
            raise UsageError(
                f"message {place} of the dialog must be a dict, got {type(message).__name__}"
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise UsageError(
                    f"message {place} of the dialog needs {key!r} with a text, got {message!r:.80}"
                )
