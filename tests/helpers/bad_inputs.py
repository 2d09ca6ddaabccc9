"""Inputs that must be refused, what the refusal has to say, and walks that try them on a rank.

Every case is run through both faces. A walk catches each error and goes on, so it also shows that
a refusal leaves the ranks able to work.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama.engine.sequence import SamplingParams
from llama.errors import (
    CheckpointError,
    HardwareError,
    LlamaError,
    RankMismatchError,
    UnknownNameError,
    UsageError,
)
from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.checkpoints import params_of, random_model, tiny_config, write_meta
from tests.helpers.tokenizers import write_sentencepiece

VOCAB_SIZE, OTHER_VOCAB_SIZE, MAX_SEQ_LEN, MAX_BATCH_SIZE = 400, 360, 32, 2
CONFIG = tiny_config(n_kv_heads=2, vocab_size=VOCAB_SIZE)
SIZES = {"max_seq_len": MAX_SEQ_LEN, "max_batch_size": MAX_BATCH_SIZE}
FACES = ("Llama", "LLM")
GOOD_PROMPT = [1, 17, 42, 9]
HOST = socket.gethostname()

Seen = tuple[str, str]
"""Class and message of the error that a case ended in; ("", "") when nothing was raised."""


@dataclass(frozen=True)
class Refusal:
    """The class to be raised, and what its message must contain."""

    kind: type[LlamaError]
    parts: tuple[str, ...]

    def fits(self, seen: Seen) -> bool:
        return seen[0] == self.kind.__name__ and all(part in seen[1] for part in self.parts)


def refused(kind: type[LlamaError], *parts: str) -> Refusal:
    return Refusal(kind, parts)


# Files ------------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """A good checkpoint of two files, `good`, its tokenizer, and all sorts of bad ones."""
    weights = random_model(CONFIG)

    def write(name: str, params_extra: Mapping[str, Any] | None = None) -> Path:
        return write_meta(folder / name, CONFIG, weights, n_files=2, params_extra=params_extra)

    write("good")
    (folder / "empty").mkdir()
    (folder / "of_something_else").mkdir()
    (folder / "of_something_else" / "notes.txt").write_text("hello")
    (write("without_params") / "params.json").unlink()
    (write("broken_params") / "params.json").write_text('{"dim": 32,')
    write("params_of_more_layers", {"n_layers": CONFIG.n_layers + 1})
    write("params_of_another_dim", {"dim": 64})
    write("params_of_another_vocabulary", {"vocab_size": OTHER_VOCAB_SIZE})
    (write("missing_shard") / "consolidated.01.pth").unlink()
    shard = write("truncated_shard") / "consolidated.01.pth"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    one_head = replace(CONFIG, n_heads=1, n_kv_heads=1, head_dim=32)
    write_meta(folder / "one_head", one_head, random_model(one_head))
    one_layer = replace(CONFIG, n_layers=1)
    write_meta(folder / "one_layer", one_layer, random_model(one_layer))
    write_sentencepiece(folder / "tokenizer.model", vocab_size=VOCAB_SIZE)
    write_sentencepiece(folder / "other.model", vocab_size=OTHER_VOCAB_SIZE)
    (folder / "no.model").write_text(json.dumps(params_of(CONFIG)))


def build(folder: Path, face: str, **changes: Any) -> Llama | LLM:
    """The good checkpoint through `face`, but for `changes`; names of files are in `folder`."""
    options: dict[str, Any] = {"ckpt_dir": "good", "tokenizer_path": "tokenizer.model", **SIZES}
    options.update(changes)
    for name in ("ckpt_dir", "tokenizer_path"):
        if isinstance(options[name], str) and options[name]:
            options[name] = str(folder / options[name])
    if face == "LLM":
        return LLM(**options)
    for meta_name, name in (("model_parallel_size", "tp"), ("pipeline_parallel_size", "pp")):
        options[meta_name] = options.pop(name, None)
    return Llama.build(**options)


# Cases ------------------------------------------------------------------------------------------

BUILDS: dict[str, tuple[dict[str, Any], Refusal]] = {
    "empty ckpt_dir": (
        {"ckpt_dir": ""},
        refused(UsageError, "ckpt_dir is empty", "give the folder"),
    ),
    "no ckpt_dir": ({"ckpt_dir": None}, refused(UsageError, "ckpt_dir", "None", "give the folder")),
    "wrong ckpt_dir": (
        {"ckpt_dir": "nowhere"},
        refused(CheckpointError, "nowhere does not exist", "check ckpt_dir"),
    ),
    "file for ckpt_dir": (
        {"ckpt_dir": "tokenizer.model"},
        refused(CheckpointError, "tokenizer.model is a file", "give the folder"),
    ),
    "empty folder": (
        {"ckpt_dir": "empty"},
        refused(CheckpointError, "no checkpoint files found in", "empty", "give the folder"),
    ),
    "folder of something else": (
        {"ckpt_dir": "of_something_else"},
        refused(CheckpointError, "of_something_else", "notes.txt", "meta", "give the folder"),
    ),
    "missing shard": (
        {"ckpt_dir": "missing_shard"},
        refused(CheckpointError, "consolidated.01.pth", "2 files expected", "1 found", "download"),
    ),
    "truncated shard": (
        {"ckpt_dir": "truncated_shard"},
        refused(CheckpointError, "truncated_shard/consolidated.01.pth", "truncated", "download"),
    ),
    "no params.json": (
        {"ckpt_dir": "without_params"},
        refused(CheckpointError, "without_params/params.json", "No such file"),
    ),
    "broken params.json": (
        {"ckpt_dir": "broken_params"},
        refused(CheckpointError, "broken_params/params.json", "not valid JSON", "line 1"),
    ),
    "params.json of more layers": (
        {"ckpt_dir": "params_of_more_layers"},
        refused(CheckpointError, "lacks 9 of the 39 tensors", "layers.3.", "configuration"),
    ),
    "params.json of another dim": (
        {"ckpt_dir": "params_of_another_dim"},
        refused(CheckpointError, "consolidated.00.pth", "dim 64", "(32,)", "params.json belongs"),
    ),
    "params.json of another vocabulary": (
        {"ckpt_dir": "params_of_another_vocabulary"},
        refused(CheckpointError, "400", "vocab_size 360", "params.json belongs"),
    ),
    "tokenizer of another vocabulary": (
        {"tokenizer_path": "other.model"},
        refused(CheckpointError, "other.model has 360", "good", "400", "use the tokenizer"),
    ),
    "no tokenizer": (
        {"tokenizer_path": "nowhere.model"},
        refused(UsageError, "nowhere.model"),
    ),
    "no tokenizer file": (
        {"tokenizer_path": "no.model"},
        refused(CheckpointError, "no.model"),
    ),
    "tp over n_heads": (
        {"ckpt_dir": "one_head", "tp": 2},
        refused(UsageError, "tp_size 2 exceeds n_heads 1", "use at most 1"),
    ),
    "pp over layers": (
        {"ckpt_dir": "one_layer", "tp": 1, "pp": 2},
        refused(UsageError, "pp_size 2 exceeds n_layers 1", "use at most 1"),
    ),
    "world not divisible": (
        {"tp": 3},
        refused(UsageError, "tp_size 3", "world size 2", "start a multiple of 3", "one of 1, 2"),
    ),
    "tp and pp over the world": (
        {"tp": 2, "pp": 2},
        refused(UsageError, "tp_size 2 x pp_size 2 = 4", "world size 2", "start a multiple of 4"),
    ),
    "tp of zero": ({"tp": 0}, refused(UsageError, "tp_size", "at least 1, got 0")),
    "tp as text": ({"tp": "2"}, refused(UsageError, "tp_size", "integer", "got '2'")),
    "pp as text": ({"pp": "2"}, refused(UsageError, "pp_size", "integer", "got '2'")),
    "max_seq_len of zero": (
        {"max_seq_len": 0},
        refused(UsageError, "max_seq_len", "at least 1, got 0"),
    ),
    "max_seq_len below zero": (
        {"max_seq_len": -5},
        refused(UsageError, "max_seq_len", "at least 1, got -5"),
    ),
    "max_batch_size of zero": (
        {"max_batch_size": 0},
        refused(UsageError, "max_batch_size", "at least 1, got 0"),
    ),
    "unknown dtype": (
        {"dtype": "float8"},
        refused(UsageError, "'float8'", "bfloat16, float16, float32"),
    ),
    "unknown device": ({"device": "tpu"}, refused(UsageError, "'tpu'", "known: cpu, cuda")),
    "device as number": ({"device": 0}, refused(UsageError, "device 0", "known: cpu, cuda")),
    "unknown backend": ({"backend": "mpi"}, refused(UsageError, "'mpi'", "known: gloo, nccl")),
    "seed as text": ({"seed": "one"}, refused(UsageError, "seed", "integer", "'one'")),
}
NO_GPU: dict[str, tuple[dict[str, Any], Refusal]] = {
    "no GPU": (
        {"device": "cuda"},
        refused(HardwareError, "device 'cuda' cannot be used", "no usable GPU", "ask for 'cpu'"),
    ),
    "no NCCL": (
        {"backend": "nccl"},
        refused(HardwareError, "backend 'nccl' cannot be used", "no usable GPU", "for 'gloo'"),
    ),
}
LLM_BUILDS: dict[str, tuple[dict[str, Any], Refusal]] = {
    "unknown option": (
        {"max_tokens": 5},
        refused(UsageError, "unknown engine option max_tokens", "known: max_seq_len"),
    ),
    "block_size of zero": ({"block_size": 0}, refused(UsageError, "block_size", "got 0")),
    "unknown attention": (
        {"attention": "magic"},
        refused(UnknownNameError, "magic", "known: naive, sdpa"),
    ),
}

Call = Callable[[Llama], object]
LONG = [[1] + [9] * MAX_SEQ_LEN]
LONG_TEXT = "the quick brown fox " * 8


def _generate(prompts: Any = None, **settings: Any) -> Call:
    return lambda llama: llama.generate(prompts or [GOOD_PROMPT], **{"max_gen_len": 4, **settings})


def _complete(prompts: Any, **settings: Any) -> Call:
    return lambda llama: llama.text_completion(prompts, **settings)


def _chat(dialogs: Any, **settings: Any) -> Call:
    return lambda llama: llama.chat_completion(dialogs, **settings)


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


TOO_LONG = refused(UsageError, "prompt 0 has", f"max_seq_len {MAX_SEQ_LEN}", "shorten")
TOO_MANY = refused(UsageError, "batch of 3", f"max_batch_size {MAX_BATCH_SIZE}", "send fewer")
CALLS: dict[str, tuple[Call, Refusal]] = {
    "long prompt of ids": (_generate(LONG), TOO_LONG),
    "long prompt of text": (_complete([LONG_TEXT]), TOO_LONG),
    "long dialog": (_chat([_user(LONG_TEXT)]), TOO_LONG),
    "many prompts of ids": (_generate([GOOD_PROMPT] * 3), TOO_MANY),
    "many prompts of text": (_complete(["x"] * 3), TOO_MANY),
    "many dialogs": (_chat([_user("x")] * 3), TOO_MANY),
    "empty prompt": (_generate([GOOD_PROMPT, []]), refused(UsageError, "prompt 1", "at least")),
    "empty dialog": (_chat([[]]), refused(UsageError, "dialog")),
    "id above the vocabulary": (_generate([[1, 400]]), refused(UsageError, "1 is 400", "0 to 399")),
    "id below zero": (_generate([[-1]]), refused(UsageError, "0 is -1", "0 to 399")),
    "id that is no integer": (_generate([[1.5]]), refused(UsageError, "integer", "float")),
    "flat list of ids": (_generate([1, 2]), refused(UsageError, "prompts must be lists")),
    "no list of ids": (_generate(7), refused(UsageError, "prompts must be")),
    "one text": (_complete("hello"), refused(UsageError, "list of texts", "'hello'")),
    "no text": (_complete([3]), refused(UsageError, "str", "int")),
    "no list of texts": (_complete(None), refused(UsageError, "list of texts", "None")),
    "no list of dialogs": (_chat(None), refused(UsageError, "list of dialogs", "None")),
    "no list of messages": (_chat(_user("x")), refused(UsageError, "list of messages", "dict")),
    "message without text": (_chat([_user(None)]), refused(UsageError, "content")),
    "unknown role": (
        _chat([[{"role": "robot", "content": "x"}]]),
        refused(UsageError, "robot"),
    ),
    "NaN temperature": (
        _complete(["x"], temperature=math.nan),
        refused(UsageError, "temperature", "finite", "nan"),
    ),
    "temperature below zero": (
        _chat([_user("x")], temperature=-1.0),
        refused(UsageError, "temperature must be at least 0", "-1.0"),
    ),
    "temperature as text": (
        _generate(temperature="hot"),
        refused(UsageError, "temperature", "'hot'"),
    ),
    "top_p of zero": (
        _complete(["x"], top_p=0.0),
        refused(UsageError, "top_p must be above 0 and at most 1", "0.0"),
    ),
    "top_p above one": (
        _chat([_user("x")], top_p=1.5),
        refused(UsageError, "top_p must be above 0 and at most 1", "1.5"),
    ),
    "top_p above one, greedy": (
        _generate(top_p=1.5, temperature=0),
        refused(UsageError, "top_p must be above 0 and at most 1", "1.5"),
    ),
    "NaN top_p": (_generate(top_p=math.nan), refused(UsageError, "top_p", "finite", "nan")),
    "max_gen_len below zero": (
        _complete(["x"], max_gen_len=-1),
        refused(UsageError, "max_gen_len", "at least 0, got -1"),
    ),
    "max_gen_len as text": (
        _chat([_user("x")], max_gen_len="4"),
        refused(UsageError, "max_gen_len", "integer", "'4'"),
    ),
}

LLM_LONG = refused(UsageError, "prompt of", f"max_seq_len is {MAX_SEQ_LEN}", "shorten")
LLM_CALLS: dict[str, tuple[Callable[[LLM], object], Refusal]] = {
    "long prompt of ids": (lambda llm: llm.generate(LONG), LLM_LONG),
    "long prompt of text": (lambda llm: llm.generate(LONG_TEXT), LLM_LONG),
    "long prompt, streamed": (lambda llm: list(llm.stream(LONG)), LLM_LONG),
    "empty prompt": (
        lambda llm: llm.generate([GOOD_PROMPT, []]),
        refused(UsageError, "empty", "at least"),
    ),
    "id above the vocabulary": (
        lambda llm: llm.generate([1, 400]),
        refused(UsageError, "1 is 400", "0 to 399"),
    ),
    "id that is no integer": (
        lambda llm: llm.generate([[1, 1.5]]),  # type: ignore[list-item]
        refused(UsageError, "1.5", "integers from 0"),
    ),
    "no prompt": (
        lambda llm: llm.generate(None),  # type: ignore[arg-type]
        refused(UsageError, "prompts", "None"),
    ),
    "prompt of no kind": (
        lambda llm: llm.generate([None]),  # type: ignore[list-item]
        refused(UsageError, "prompt 0", "None"),
    ),
    "parameters of no kind": (
        lambda llm: llm.generate("x", {"temperature": 0}),  # type: ignore[arg-type]
        refused(UsageError, "must be SamplingParams", "temperature"),
    ),
    "more parameters than prompts": (
        lambda llm: llm.generate("x", [SamplingParams()] * 2),
        refused(UsageError, "2 sampling_params for 1 prompt"),
    ),
    "stop token outside the vocabulary": (
        lambda llm: llm.generate("x", SamplingParams(stop_token_ids=(400,))),
        refused(UsageError, "stop_token_ids", "400", "0 to 399"),
    ),
    "NaN temperature": (
        lambda llm: llm.generate("x", SamplingParams(temperature=math.nan)),
        refused(UsageError, "temperature", "finite", "nan"),
    ),
    "top_p of zero": (
        lambda llm: llm.generate("x", SamplingParams(top_p=0.0)),
        refused(UsageError, "top_p must be above 0 and at most 1", "0.0"),
    ),
    "max_tokens of zero": (
        lambda llm: llm.generate("x", SamplingParams(max_tokens=0)),
        refused(UsageError, "max_tokens must be an integer from 1", "got 0"),
    ),
}


def differing_builds(rank: int) -> dict[str, tuple[dict[str, Any], Refusal]]:
    """Builds that rank 1 asks for in another way than rank 0."""

    def mismatch(name: str, mine: object, others: object) -> Refusal:
        parts = (f"{name}: {mine} on rank 0; {others} on rank 1 ({HOST})", "give every")
        return refused(RankMismatchError, *parts)

    odd = rank == 1
    alone = f"rank 1 ({HOST}) failed while " if rank == 0 else ""
    return {
        "max_seq_len": (
            {"max_seq_len": 48 if odd else 32},
            mismatch("engine.max_seq_len", 32, 48),
        ),
        "seed": ({"seed": 8 if odd else 7}, mismatch("seed", 7, 8)),
        "dtype": (
            {"dtype": "bfloat16" if odd else "float32"},
            mismatch("dtype", '"torch.float32"', '"torch.bfloat16"'),
        ),
        "tp": ({"tp": 1 if odd else 2}, mismatch("tp_size", 2, 1)),
        "backend": ({"backend": "gloo" if odd else None}, mismatch("backend", "None", "'gloo'")),
        "model": (
            {"ckpt_dir": "one_layer" if odd else "good"},
            mismatch("model.n_layers", 3, 1),
        ),
        "max_seq_len of zero on one": (
            {"max_seq_len": 0 if odd else 32},
            refused(UsageError, alone, "max_seq_len must be an integer of at least 1, got 0"),
        ),
        "truncated shard on one": (
            {"ckpt_dir": "truncated_shard" if odd else "good"},
            refused(CheckpointError, alone, "consolidated.01.pth is truncated", "download it"),
        ),
        "tokenizer on one": (
            {"tokenizer_path": "other.model" if odd else "tokenizer.model"},
            refused(CheckpointError, alone, "other.model has 360", "400", "use the tokenizer"),
        ),
        "device on one": (
            {"device": "tpu" if odd else "cpu"},
            mismatch("device", "'cpu'", "'tpu'"),
        ),
    }


def differing_calls(rank: int) -> dict[str, tuple[Call, Refusal]]:
    """Calls that rank 1 makes in another way than rank 0."""

    def mismatch(*parts: str) -> Refusal:
        return refused(RankMismatchError, "give every rank the same", f"rank 1 ({HOST})", *parts)

    odd = rank == 1
    return {
        "temperature": (
            _complete(["x"], temperature=0.9 if odd else 0.6),
            mismatch("temperature: 0.6 on rank 0; 0.9 on rank 1"),
        ),
        "NaN temperature on one": (
            _complete(["x"], temperature=math.nan if odd else 0.6),
            mismatch("temperature: 0.6 on rank 0; NaN on rank 1"),
        ),
        "prompts": (_complete(["y" if odd else "x"]), mismatch('prompts: ["x"] on rank 0; ["y"]')),
        "number of prompts": (_generate([GOOD_PROMPT] * (1 + odd)), mismatch("prompts: ")),
        "dialogs": (_chat([_user("y" if odd else "x")]), mismatch("prompts: ")),
        "call": (_complete(["x"]) if odd else _chat(["x"]), mismatch("call: ")),
    }


# Walks ------------------------------------------------------------------------------------------


def caught(act: Callable[[], object]) -> Seen:
    """What `act` raises. Only Exception: nothing else is for a program to catch."""
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def builds(face: str) -> dict[str, tuple[dict[str, Any], Refusal]]:
    """By name, what to change in a good build, and what must come of it."""
    return BUILDS | NO_GPU | (LLM_BUILDS if face == "LLM" else {})


def walk_builds(folder: Path, rank: int) -> Iterator[tuple[str, Seen, Refusal]]:
    """Every build that must fail, one after the other in this process."""
    for face in FACES:
        for name, (changes, refusal) in (builds(face) | differing_builds(rank)).items():
            yield f"{face}: {name}", caught(lambda: build(folder, face, **changes)), refusal  # noqa: B023


def walk_calls(folder: Path, rank: int) -> Iterator[tuple[str, Seen, Refusal]]:
    """Every call that must fail, on one Llama and one LLM over the same ranks."""
    llama, llm = build(folder, "Llama", tp=1, pp=2), build(folder, "LLM", tp=1, pp=2)
    assert isinstance(llama, Llama) and isinstance(llm, LLM)
    for name, (call, refusal) in (CALLS | differing_calls(rank)).items():
        yield f"Llama: {name}", caught(lambda: call(llama)), refusal  # noqa: B023
    for name, (llm_call, refusal) in LLM_CALLS.items():
        yield f"LLM: {name}", caught(lambda: llm_call(llm)), refusal  # noqa: B023
    expected = llama.generate([GOOD_PROMPT], 4, temperature=0)[0][0]
    found = llm.generate(GOOD_PROMPT, SamplingParams(temperature=0, max_tokens=4))[0].token_ids
    assert expected == list(found)[: len(expected)]


def walk(folder: Path, rank: int) -> dict[str, str]:
    """Every case that ended in another way than it must, by name; none is left out."""
    wrong = {}
    for walker in (walk_builds, walk_calls):
        for name, seen, refusal in walker(folder, rank):
            if not refusal.fits(seen):
                wrong[name] = f"{seen} is not {refusal}"
    return wrong
