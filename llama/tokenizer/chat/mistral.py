"""Mistral's [INST] layouts. Version 1 writes the tags as text, from version 2 on they are tokens.

Versions are those of Mistral's tokenizers; versions 2 and 3 differ in how tools are written, which
no dialog here has. Source: the instruct tokenizers of mistral-common.
"""

from __future__ import annotations

from llama.errors import UsageError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat.messages import Dialog, Message, split_turns
from llama.tokenizer.chat.tags import B_INST, E_INST


def encode_mistral_v1(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """bos, then `[INST] user [/INST]`, and every answer closed by eos. Nothing is stripped.

    The system message goes before the text of the first user.
    """
    system, turns = split_turns(dialog)
    ids = [tokenizer.bos_id]
    for place, message in enumerate(turns):
        if message["role"] == "assistant":
            ids += tokenizer.encode(message["content"], False, True)
        else:
            text = _with_system(system if place == 0 else None, message)
            ids += tokenizer.encode(f"{B_INST} {text} {E_INST}", False, False)
    return ids


def encode_mistral_v3(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """bos, every user's text between the two tokens, and every answer closed by eos.

    The system message goes before the text of the last user; answers lose the spaces at their end.
    """
    special = tokenizer.special_tokens
    if not {B_INST, E_INST} <= special.keys():
        raise UsageError(
            f"the Mistral chat formats from v2 on need the tokens {B_INST} and {E_INST}, which "
            f"{tokenizer.model_path} does not have; use mistral-v1"
        )
    system, turns = split_turns(dialog)
    ids = [tokenizer.bos_id]
    for place, message in enumerate(turns, start=1):
        if message["role"] == "assistant":
            ids += tokenizer.encode(message["content"].rstrip(" "), False, True)
        else:
            text = _with_system(system if place == len(turns) else None, message)
            ids += [special[B_INST], *tokenizer.encode(text, False, False), special[E_INST]]
    return ids


def _with_system(system: Message | None, message: Message) -> str:
    if system is None or not system["content"]:
        return message["content"]
    return f"{system['content']}\n\n{message['content']}"
