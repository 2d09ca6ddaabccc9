"""Text to token ids and back, prompts of chat models, text as it grows. Needs no torch."""

from llama.tokenizer.base import TOKENIZERS, Tokenizer
from llama.tokenizer.chat import (
    CHAT_FORMATS,
    ChatFormat,
    Dialog,
    Message,
    Role,
    encode_dialog,
    pick_chat_format,
)
from llama.tokenizer.find import find_tokenizer
from llama.tokenizer.stream import StreamDecoder

__all__ = [
    "CHAT_FORMATS",
    "TOKENIZERS",
    "ChatFormat",
    "Dialog",
    "Message",
    "Role",
    "StreamDecoder",
    "Tokenizer",
    "encode_dialog",
    "find_tokenizer",
    "pick_chat_format",
]
