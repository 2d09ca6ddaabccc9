"""Code Llama 70B's layout: every message under the name of its source, closed by <step>.

Source: `dialog_prompt_tokens` of Meta's codellama repository.
"""

from __future__ import annotations

from llama.errors import UsageError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat.messages import Dialog, Message, split_turns
from llama.tokenizer.chat.tags import STEP


def encode_codellama70b(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """bos, every message from the system's on, and the header of an answer to the user.

    A dialog without a system message gets an empty one.
    """
    if STEP not in tokenizer.special_tokens:
        raise UsageError(
            f"the Code Llama 70B chat format needs the token {STEP}, which {tokenizer.model_path} "
            "does not have"
        )
    step_id = tokenizer.special_tokens[STEP]
    system, turns = split_turns(dialog)
    ids = [tokenizer.bos_id]
    for message in (system or Message(role="system", content=""), *turns):
        ids += _encode_header(tokenizer, message["role"], message.get("destination"))
        if message["content"]:
            ids += tokenizer.encode(f"\n\n {message['content'].strip()}", False, False)
        ids.append(step_id)
    ids += _encode_header(tokenizer, "assistant", "user")
    return ids + tokenizer.encode("\n\n ", False, False)


def _encode_header(tokenizer: Tokenizer, source: str, destination: str | None) -> list[int]:
    lines = [f" Source: {source}"]
    if destination is not None:
        lines.append(f"Destination: {destination.strip()}")
    return tokenizer.encode("\n".join(lines), False, False)
