"""Llama 3's layout: every message under a header, closed by a token of its own."""

from __future__ import annotations

from llama.errors import UsageError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat.messages import Dialog, Message, check_messages


def encode_llama3(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """Every message under its header and closed by eot_id, then the header of the answer."""
    return ChatFormat(tokenizer).encode_dialog_prompt(dialog)


class ChatFormat:
    """Llama 3's layout, under Meta's names. Any role is allowed, as there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if "<|eot_id|>" not in tokenizer.special_tokens:
            raise UsageError(
                f"the Llama 3 chat format needs Llama 3's special tokens; {tokenizer.model_path} "
                f"has only {sorted(tokenizer.special_tokens)!r:.200}"
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
        check_messages(dialog)
        ids = [self.tokenizer.bos_id]
        for message in dialog:
            ids += self.encode_message(message)
        return ids + self.encode_header(Message(role="assistant", content=""))
