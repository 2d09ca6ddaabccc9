"""The options of every command, as fire reads them. A function describes a run; none starts one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fire.decorators import SetParseFn, SetParseFns

from llama.cli.chat import Chat
from llama.cli.generate import Generate, ModelOptions
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Kind = Callable[[str], object]

_INTEGERS = ("tp", "pp", "max_seq_len", "max_batch_size", "max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p")
_SWITCHES = ("stats",)


def _typed(function: _Function) -> _Function:
    """Have fire read numbers where numbers belong and text everywhere else.

    Left alone it guesses, and the prompt `1,2` or `[x]` would be no text.
    """
    kinds: dict[str, _Kind] = {
        **dict.fromkeys(_INTEGERS, int),
        **dict.fromkeys(_NUMBERS, float),
        **dict.fromkeys(_SWITCHES, {"True": True, "False": False}.__getitem__),
    }

    def parser(name: str, kind: _Kind) -> _Kind:
        def parse(text: str) -> object:
            try:
                return kind(text)
            except (KeyError, ValueError):
                raise UsageError(f"--{name} cannot be {text!r}") from None

        return parse

    SetParseFn(str)(function)
    SetParseFns(**{name: parser(name, kind) for name, kind in kinds.items()})(function)
    return function


@_typed
def generate(
    ckpt_dir: str,
    *prompts: str,
    tokenizer_path: str | None = None,
    max_tokens: int = 128,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    max_seq_len: int = 2048,
    max_batch_size: int | None = None,
    stats: bool = False,
) -> Generate:
    """Complete each prompt and print the whole text; the speed goes to stderr.

    Args:
        ckpt_dir: folder of the checkpoint
        prompts: texts to complete, all in one batch
        tokenizer_path: tokenizer.model; by default the one in ckpt_dir or beside it
        max_tokens: longest completion, in tokens
        temperature: 0 takes the most probable token every time
        top_p: draw from the most probable tokens that make up this share; 1 is off
        top_k: draw from this many most probable tokens; 0 is off
        seed: the same seed gives the same text on every layout
        tp: tensor parallel size; with pp, as many ranks as needed are started
        pp: pipeline parallel size
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps
        backend: gloo or nccl
        max_seq_len: longest prompt and completion together, in tokens
        max_batch_size: prompts that run at once; by default all, up to 32
        stats: also print what every rank did
    """
    if not prompts:
        raise UsageError("no prompt; use: llama generate CKPT_DIR PROMPT ...")
    return Generate(
        ModelOptions(
            ckpt_dir=ckpt_dir,
            tokenizer_path=tokenizer_path,
            tp=tp,
            pp=pp,
            dtype=dtype,
            device=device,
            backend=backend,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size or min(len(prompts), 32),
        ),
        prompts,
        SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens
        ),
        stats,
    )


@_typed
def chat(
    ckpt_dir: str,
    *,
    system: str | None = None,
    tokenizer_path: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    max_seq_len: int = 2048,
) -> Chat:
    """Talk with a chat model; /reset forgets the conversation, /quit ends it.

    Args:
        ckpt_dir: folder of the checkpoint
        system: what the model is told before the conversation
        tokenizer_path: tokenizer.model; by default the one in ckpt_dir or beside it
        max_tokens: longest answer, in tokens; by default as long as the context allows
        temperature: 0 takes the most probable token every time
        top_p: draw from the most probable tokens that make up this share; 1 is off
        top_k: draw from this many most probable tokens; 0 is off
        seed: the same seed gives the same answers on every layout
        tp: tensor parallel size; with pp, as many ranks as needed are started
        pp: pipeline parallel size
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps
        backend: gloo or nccl
        max_seq_len: longest conversation with its answer, in tokens
    """
    return Chat(
        ModelOptions(
            ckpt_dir=ckpt_dir,
            tokenizer_path=tokenizer_path,
            tp=tp,
            pp=pp,
            dtype=dtype,
            device=device,
            backend=backend,
            max_seq_len=max_seq_len,
            max_batch_size=1,
        ),
        system,
        SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens
        ),
    )
