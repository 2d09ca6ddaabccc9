"""What a dialog is, and the order of turns that most formats can express. It knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from llama.errors import UsageError

Role = Literal["system", "user", "assistant"]


class _Message(TypedDict):
    role: Role
    content: str


class Message(_Message, total=False):
    """`destination` says whom a message is for; only Code Llama 70B's format has a place for it."""

    destination: str


Dialog = Sequence[Message]


def check_messages(dialog: Dialog) -> None:
    """Raises UsageError unless `dialog` is a list of messages with their texts."""
    if isinstance(dialog, str) or not isinstance(dialog, Sequence):
        raise UsageError(f"a dialog must be a list of messages, got {type(dialog).__name__}")
    if not dialog:
        raise UsageError("a dialog needs at least one message, got none")
    for place, message in enumerate(dialog):
        if not isinstance(message, dict):
            raise UsageError(
                f"message {place} of the dialog must be a dict, got {type(message).__name__}"
            )
        for key in ("role", "content", *(["destination"] if "destination" in message else [])):
            if not isinstance(message.get(key), str):
                raise UsageError(
                    f"message {place} of the dialog needs {key!r} with a text, got {message!r:.80}"
                )


def split_turns(dialog: Dialog) -> tuple[Message | None, list[Message]]:
    """The leading system message, if there is one, and the turns of user and assistant.

    Raises UsageError, in Meta's words, unless they alternate from user to user.
    """
    check_messages(dialog)
    system = dialog[0] if dialog[0]["role"] == "system" else None
    turns = list(dialog) if system is None else list(dialog[1:])
    roles = [message["role"] for message in turns]
    if not roles or any(role != ("user", "assistant")[at % 2] for at, role in enumerate(roles)):
        raise UsageError(
            "model only supports 'system', 'user' and 'assistant' roles, "
            "starting with 'system', then 'user' and alternating (u/a/u/a/u...), "
            f"got {[message['role'] for message in dialog]}"
        )
    if roles[-1] != "user":
        raise UsageError(f"Last message must be from user, got {roles[-1]}")
    return system, turns
