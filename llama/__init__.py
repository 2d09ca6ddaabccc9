"""Llama-family models on any tensor × pipeline layout, under the names of Meta's `llama` package.

Names are imported when they are first used: `import llama` loads neither torch nor fairscale.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llama.version import VERSION as __version__

if TYPE_CHECKING:
    from llama.engine.score import ScoreOutput as ScoreOutput
    from llama.engine.sequence import RequestOutput as RequestOutput
    from llama.engine.sequence import SamplingParams as SamplingParams
    from llama.generation import Llama as Llama
    from llama.llm import LLM as LLM
    from llama.model import ModelArgs as ModelArgs
    from llama.model import Transformer as Transformer
    from llama.tokenizer import ChatFormat as ChatFormat
    from llama.tokenizer import Dialog as Dialog
    from llama.tokenizer import Message as Message
    from llama.tokenizer import Role as Role
    from llama.tokenizer import StreamDecoder as StreamDecoder
    from llama.tokenizer import Tokenizer as Tokenizer

_HOMES = {
    "LLM": "llama.llm",
    "ChatFormat": "llama.tokenizer",
    "Dialog": "llama.tokenizer",
    "Llama": "llama.generation",
    "Message": "llama.tokenizer",
    "ModelArgs": "llama.model",
    "RequestOutput": "llama.engine.sequence",
    "Role": "llama.tokenizer",
    "SamplingParams": "llama.engine.sequence",
    "ScoreOutput": "llama.engine.score",
    "StreamDecoder": "llama.tokenizer",
    "Tokenizer": "llama.tokenizer",
    "Transformer": "llama.model",
}
# Meta's package imports these along with itself, so `llama.generation.Llama` just works there.
_SUBMODULES = ("generation", "model", "tokenizer")

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"llama.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'llama' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
