"""Tags that are ordinary text, so that a message could forge them; and Meta's check for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama.tokenizer.chat.messages import Dialog

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = [B_INST, E_INST, "<<SYS>>", "<</SYS>>"]
STEP = "<step>"

_TAGS_OF_FORMAT: Mapping[str | None, Sequence[str]] = {
    "codellama": (*SPECIAL_TAGS, STEP),
    "codellama70b": (*SPECIAL_TAGS, STEP),
    "llama2": SPECIAL_TAGS,
    "mistral-v1": (B_INST, E_INST),
}


def has_special_tags(dialog: Dialog, *, chat_format: str | None = "llama2") -> bool:
    """Whether any message contains a tag of the format, and so could forge a turn.

    Never for a format whose turns are marked with tokens, which no text encodes to.
    """
    tags = _TAGS_OF_FORMAT.get(chat_format, ())
    return any(tag in message["content"] for tag in tags for message in dialog)
