"""Builds that must be refused: by name, what is changed in a good one, and the refusal."""

from __future__ import annotations

import socket
from typing import Any

import torch

from llama.errors import (
    CheckpointError,
    HardwareError,
    RankMismatchError,
    UnknownNameError,
    UsageError,
)
from tests.helpers.refusals import Refusal, refused

Builds = dict[str, tuple[dict[str, Any], Refusal]]
HOST = socket.gethostname()

BUILDS: dict[str, tuple[dict[str, Any], Refusal]] = {
    "empty ckpt_dir": (
        {"ckpt_dir": ""},
        refused(UsageError, "ckpt_dir is empty", "give the folder"),
    ),
    "unknown chat format": (
        {"chat_format": "vicuna"},
        refused(UnknownNameError, "'vicuna'", "known: codellama"),
    ),
    "chat format of another tokenizer": (
        {"chat_format": "mistral-v3"},
        refused(UsageError, "need the tokens [INST] and [/INST]", "use mistral-v1"),
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
        refused(CheckpointError, "400", "vocab_size 360", "belongs to another model"),
    ),
    "tokenizer of another vocabulary": (
        {"tokenizer_path": "other.model"},
        refused(CheckpointError, "other.model has 360", "good", "400", "use the tokenizer"),
    ),
    "no tokenizer": (
        {"tokenizer_path": "nowhere.model"},
        refused(CheckpointError, "nowhere.model"),
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
    "unknown transport": (
        {"transport": "pigeon"},
        refused(UnknownNameError, "'pigeon'", "known: auto, shm, gloo"),
    ),
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
    "num_blocks as text": ({"num_blocks": "3"}, refused(UsageError, "num_blocks", "got '3'")),
    "memory_fraction as text": (
        {"memory_fraction": "all"},
        refused(UsageError, "memory_fraction must be in (0, 1], got 'all'"),
    ),
    "unknown attention": (
        {"attention": "magic"},
        refused(UnknownNameError, "magic", "known: auto, flash, naive"),
    ),
}


def builds_through(face: str) -> Builds:
    """Those that every rank asks for alike, on two ranks."""
    found = BUILDS | (LLM_BUILDS if face == "LLM" else {})
    return found if torch.cuda.is_available() else found | NO_GPU


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
        "transport": (
            {"transport": "gloo" if odd else None},
            mismatch("transport", "None", "'gloo'"),
        ),
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
