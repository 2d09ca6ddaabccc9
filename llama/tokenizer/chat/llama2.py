"""Llama 2's layout, which Code Llama 7B to 34B share: turns between tags that are text."""

from __future__ import annotations

from itertools import pairwise

from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat.messages import Dialog, split_turns
from llama.tokenizer.chat.tags import B_INST, B_SYS, E_INST, E_SYS


def encode_llama2(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """`bos [INST] user [/INST] answer eos` per finished exchange, then the open one without eos.

    The system message goes before the text of the first user, between its own tags and unstripped.
    """
    system, turns = split_turns(dialog)
    texts = [message["content"] for message in turns]
    if system is not None:
        texts[0] = f"{B_SYS}{system['content']}{E_SYS}{texts[0]}"
    texts = [text.strip() for text in texts]
    ids: list[int] = []
    for question, answer in list(pairwise(texts))[::2]:
        exchange = f"{B_INST} {question} {E_INST} {answer} "
        ids += tokenizer.encode(exchange, True, True)
    return ids + tokenizer.encode(f"{B_INST} {texts[-1]} {E_INST}", True, False)
