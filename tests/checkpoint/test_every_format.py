"""The same random weights in every format: the same bits on every rank of every layout.

Formats whose RoPE rotates halves hold the rows of wq and wk in another order; which one, is written
out here once more, and the text must not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.config import EngineConfig, ModelConfig
from llama.engine.build import load_stage
from llama.engine.sequence import SamplingParams
from llama.parallel.context import ParallelContext, single
from tests.helpers.checkpoints import Weights, random_model, tiny_config, write_meta
from tests.helpers.contents import assert_same, contents
from tests.helpers.dcp_files import write_dcp
from tests.helpers.engines import make_engine
from tests.helpers.fill import fill
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import write_megatron
from tests.helpers.mistral_files import write_mistral
from tests.helpers.ranks import run_layout

pytestmark = pytest.mark.slow

CONFIG = tiny_config(n_layers=4, n_kv_heads=4)
GPT2_CONFIG = tiny_gpt2_config(n_layers=4)
LAYOUTS = [(tp, pp) for tp, pp in product((1, 2, 3, 4), (1, 2, 3)) if tp * pp <= 4]
PROMPT = [1, 17, 42, 9, 3, 60, 8]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def in_halves(weights: Mapping[str, Tensor]) -> Weights:
    """`weights` for a RoPE that rotates i with i + head_dim / 2: even rows of a head first."""

    def reordered(weight: Tensor) -> Tensor:
        heads = weight.split(CONFIG.head_dim)
        return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])

    return {
        name: reordered(weight) if name.endswith(("wq.weight", "wk.weight")) else weight
        for name, weight in weights.items()
    }


def write_megatron_halves(
    path: Path, config: ModelConfig, weights: Mapping[str, Tensor], **how: Any
) -> Path:
    """As Megatron itself trains a Llama; only an argument says that RoPE is interleaved."""
    return write_megatron(path, replace(config, rope_style="half"), in_halves(weights), **how)


Write = Callable[..., Path]
FORMATS: dict[str, tuple[str, Write, dict[str, Any]]] = {
    "Meta x1": ("meta", write_meta, {}),
    "Meta x2, embedding cut by column": ("meta", write_meta, {"n_files": 2, "embedding_split": 1}),
    "Meta x4": ("meta", write_meta, {"n_files": 4}),
    "Mistral safetensors": ("mistral", write_mistral, {}),
    "Mistral pth": (
        "mistral",
        write_mistral,
        {"container": "pth", "params_extra": {"sliding_window": 4096}},
    ),
    "HF safetensors": ("hf", write_hf, {}),
    "HF safetensors, indexed": ("hf", write_hf, {"n_shards": 3}),
    "HF bin": ("hf", write_hf, {"kind": "bin"}),
    "HF bin, indexed": ("hf", write_hf, {"kind": "bin", "n_shards": 3}),
    "Megatron core 1x1, interleaved": ("megatron", write_megatron, {"names": "core"}),
    "Megatron core 2x2": (
        "megatron",
        write_megatron_halves,
        {"names": "core", "tp": 2, "pp": 2},
    ),
    "Megatron core 4x1, fused norms": ("megatron", write_megatron_halves, {"names": "te", "tp": 4}),
    "DCP, Meta's names": ("dcp", write_dcp, {}),
    "DCP, HF's names, 2 ranks": ("dcp", write_dcp, {"names": "hf", "n_ranks": 2}),
}
GPT2_FORMATS: dict[str, tuple[str, Write, dict[str, Any]]] = {
    "HF safetensors": ("hf", write_hf, {}),
    "HF bin, indexed": ("hf", write_hf, {"kind": "bin", "n_shards": 3}),
    **{
        f"Megatron version {version}, {tp}x{pp}": (
            "megatron",
            write_megatron,
            {"version": version, "tp": tp, "pp": pp, "names": names},
        )
        for (version, names), (tp, pp) in product(
            [(None, "transformer"), (0, "transformer"), (1.0, "encoder"), (2.0, "encoder"),
             (3.0, "norm"), (3.0, "core")],
            [(1, 1), (2, 1), (2, 2), (4, 1)],
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    weights = random_model(CONFIG)
    root = tmp_path_factory.mktemp("formats")
    return {
        name: str(write(root / str(number), CONFIG, weights, **options))
        for number, (name, (_, write, options)) in enumerate(FORMATS.items())
    }


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def wrong_parameters(context: ParallelContext, folders: Mapping[str, str]) -> list[str]:
    """What this rank holds of each checkpoint that is not its slice of the whole tensors."""
    weights = random_model(CONFIG)
    wrong, n_seen = [], 0
    for name, folder in folders.items():
        reader = open_checkpoint(folder)
        whole = weights if reader.config.rope_style == "interleaved" else in_halves(weights)
        config = EngineConfig(max_seq_len=8, max_batch_size=1)
        stage, _ = load_stage(reader, config=config, context=context, dtype=torch.float32)
        reader.close()
        held = {path: digest(parameter) for path, parameter in stage.named_parameters()}
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.zero_()
        fill(stage, whole)
        for path, parameter in stage.named_parameters():
            n_seen += 1
            if held[path] != digest(parameter):
                wrong.append(f"{name}: {path}")
    assert n_seen >= len(folders)
    return wrong


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_every_format_gives_every_rank_the_same_bits(
    folders: dict[str, str], tp: int, pp: int
) -> None:
    assert run_layout(wrong_parameters, folders, tp=tp, pp=pp) == [[]] * (tp * pp)


def greedy_tokens(context: ParallelContext, folders: Mapping[str, str]) -> list[list[int]]:
    found = []
    for folder in folders.values():
        engine = make_engine(context, folder)
        (finished,) = engine.generate([PROMPT], [GREEDY])
        found.append(list(finished.token_ids))
    return found


def test_every_format_says_the_same_on_one_process_and_on_four(folders: dict[str, str]) -> None:
    alone = greedy_tokens(single(), folders)
    assert alone == [alone[0]] * len(FORMATS)
    assert run_layout(greedy_tokens, folders, tp=2, pp=2) == [alone] * 4


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_recognised_and_tells_the_architecture(
    folders: dict[str, str], name: str
) -> None:
    reader = open_checkpoint(folders[name])
    is_half = name.startswith("HF") or "HF's names" in name or "Megatron core" in name
    style = "half" if is_half and "interleaved" not in name else "interleaved"
    told = replace(reader.config, max_positions=None, sliding_window=None, rope_style="interleaved")
    assert reader.format == FORMATS[name][0]
    assert reader.config.rope_style == style
    assert told == replace(CONFIG, max_positions=None)
    assert open_checkpoint(folders[name], format=reader.format).config == reader.config


@pytest.mark.parametrize("name", GPT2_FORMATS)
def test_gpt2_has_the_same_bits_in_every_format(tmp_path: Path, name: str) -> None:
    weights = random_gpt2(GPT2_CONFIG)
    format, write, options = GPT2_FORMATS[name]
    reader = open_checkpoint(write(tmp_path / "x", GPT2_CONFIG, weights, **options))
    assert reader.format == format
    assert_same(contents(reader), weights)
