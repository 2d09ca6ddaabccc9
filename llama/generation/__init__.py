"""Meta's `llama.generation`: its class, its functions and the types of what they return."""

from llama.generation.llama import Llama
from llama.generation.predictions import (
    UNSAFE_ERROR,
    ChatPrediction,
    CompletionPrediction,
    InfillingPrediction,
)
from llama.generation.top_p import sample_top_p
from llama.tokenizer import Dialog, Message, Role
from llama.tokenizer.chat import B_INST, B_SYS, E_INST, E_SYS, SPECIAL_TAGS
from llama.tokenizer.chat.codellama70b import encode_codellama70b as dialog_prompt_tokens
from llama.tokenizer.infilling import infilling_prompt_tokens

__all__ = [
    "B_INST",
    "B_SYS",
    "E_INST",
    "E_SYS",
    "SPECIAL_TAGS",
    "UNSAFE_ERROR",
    "ChatPrediction",
    "CompletionPrediction",
    "Dialog",
    "InfillingPrediction",
    "Llama",
    "Message",
    "Role",
    "dialog_prompt_tokens",
    "infilling_prompt_tokens",
    "sample_top_p",
]
