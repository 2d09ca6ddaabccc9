"""Megatron-LM's files of every version, generation and cut are the tensors they were made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.checkpoint.canonical import EMBEDDING, HEAD
from llama.checkpoint.formats.megatron_names import CORE, LEGACY, Spelling
from tests.helpers.checkpoints import random_model
from tests.helpers.megatron_files import write_megatron
from tests.helpers.megatron_models import (
    GPT2,
    GPT2_WEIGHTS,
    LLAMA,
    LLAMA_WEIGHTS,
    assert_reads,
    edit,
    message_of,
)

LAYOUTS = [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)]


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("names", ["transformer", "encoder", "core"])
@pytest.mark.parametrize("version", [None, 0, 1.0, 2.0, 3.0])
def test_gpt2_of_every_version_and_cut(
    version: float | None, names: str, tp: int, pp: int, tmp_path: Path
) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, version=version, names=names, tp=tp, pp=pp)
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("names", ["encoder", "norm", "core", "te"])
def test_llama_with_query_groups(names: str, tp: int, pp: int, tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names=names, tp=tp, pp=pp)
    assert_reads(open_checkpoint(tmp_path), LLAMA, LLAMA_WEIGHTS)


@pytest.mark.parametrize("version", [0, 1.0, 2.0])
def test_versions_differ_where_it_matters(version: float, tmp_path: Path) -> None:
    """Read as another version the same file is another model: the cases above can fail."""
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, version=version, tp=2)
    for path in tmp_path.glob("iter_*/*/*.pt"):
        content = torch.load(path, weights_only=False)
        torch.save({**content, "checkpoint_version": (version + 1) % 3}, path)
    reader = open_checkpoint(tmp_path)
    wq = torch.empty(32, 32)
    reader.read_into(wq, "layers.0.attention.wq.weight")
    assert not torch.equal(wq, GPT2_WEIGHTS["layers.0.attention.wq.weight"])


@pytest.mark.parametrize(
    ("tp", "pp", "virtual", "stages"),
    [
        (1, 2, 2, None),
        (2, 2, 2, None),
        (1, 1, 4, None),
        (1, 3, 1, (1, 2, 1)),
        (2, 2, 1, (3, 1)),
        (1, 3, 1, (0, 3, 1)),
        (1, 2, 2, (2, 1, 1, 0)),
    ],
)
@pytest.mark.parametrize("names", ["encoder", "te"])
def test_layers_are_counted_through_uneven_and_virtual_stages(
    names: str, tp: int, pp: int, virtual: int, stages: tuple[int, ...] | None, tmp_path: Path
) -> None:
    write_megatron(
        tmp_path, LLAMA, LLAMA_WEIGHTS, names=names, tp=tp, pp=pp, virtual=virtual, stages=stages
    )
    assert_reads(open_checkpoint(tmp_path), LLAMA, LLAMA_WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, dtype=dtype, tp=2)
    reader = open_checkpoint(tmp_path)
    assert reader.dtype == dtype
    assert_reads(reader, GPT2, GPT2_WEIGHTS)


@pytest.mark.parametrize("names", ["transformer", "core"])
def test_files_of_torch_before_1_6(names: str, tmp_path: Path) -> None:
    write_megatron(
        tmp_path, GPT2, GPT2_WEIGHTS, version=None, names=names, tp=2, zip_container=False
    )
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("names", ["encoder", "core"])
def test_a_tied_head_is_the_embedding(names: str, pp: int, tmp_path: Path) -> None:
    config = replace(LLAMA, tied_embeddings=True)
    weights = {**LLAMA_WEIGHTS, HEAD: LLAMA_WEIGHTS[EMBEDDING]}
    write_megatron(tmp_path, config, weights, names=names, pp=pp, tp=2)
    reader = open_checkpoint(tmp_path)
    assert reader.tensors[HEAD] is reader.tensors[EMBEDDING]
    copies = [why for why in reader.ignored.values() if "copy of the word embeddings" in why]
    assert len(copies) == (1 if pp == 2 else 0)
    assert_reads(reader, config, weights)


@pytest.mark.parametrize("names", ["encoder", "core"])
def test_a_tied_head_that_is_another_matrix(names: str, tmp_path: Path) -> None:
    config = replace(LLAMA, tied_embeddings=True)
    write_megatron(tmp_path, config, LLAMA_WEIGHTS, names=names, pp=2)
    name = {"encoder": "word_embeddings_for_head.weight", "core": "output_layer.weight"}[names]

    def change(content: dict[str, Any]) -> None:
        key, _, inner = name.rpartition(".")
        held = content["model"] if names == "core" else content["model"][key]
        held[name if names == "core" else inner][-1] += 1

    edit(tmp_path, change, rank="mp_rank_00_001")
    assert f"{name} should be a copy of the word embeddings" in message_of(tmp_path)


def test_transformer_engine_states_are_ignored_and_never_opened(tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="te")
    ignored = open_checkpoint(tmp_path).ignored
    assert set(ignored) == {
        "decoder.layers.0.self_attention.linear_qkv._extra_state",
        "decoder.final_layernorm._extra_state",
    }


def test_biases_and_heads_of_another_width(tmp_path: Path) -> None:
    config = replace(LLAMA, attention_bias=True, mlp_bias=True, head_dim=6, n_kv_heads=2)
    weights = random_model(config)
    write_megatron(tmp_path, config, weights, names="core", tp=2)
    assert_reads(open_checkpoint(tmp_path), config, weights)


def test_reading_touches_its_own_rows_only(tmp_path: Path) -> None:
    """Half the heads of a grouped model: no byte of the other half, and none of K and V."""
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core")
    reader = open_checkpoint(tmp_path)
    half: Tensor = torch.empty(16, 32)
    name = "layers.2.attention.wq.weight"
    assert reader.read_into(half, name, dim=0, start=16) == half.nbytes
    assert torch.equal(half, LLAMA_WEIGHTS[name][16:])


@pytest.mark.parametrize("spelling", [CORE, LEGACY])
def test_every_name_is_read_as_it_is_written(spelling: Spelling) -> None:
    for canonical in spelling.top:
        assert spelling.parse(spelling.write(canonical)) == (None, canonical)
    for canonical in spelling.in_layer:
        assert spelling.parse(spelling.write(canonical, 11)) == (11, canonical)
    for stored in ("layers.0.input_layernorm.weight", f"{spelling.layers[0]}01.input_norm.weight"):
        assert spelling.parse(stored) is None
