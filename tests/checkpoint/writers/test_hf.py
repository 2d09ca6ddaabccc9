from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.config import ModelConfig, RopeScaling
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.conversions import assert_same, converted
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import hf_config, hf_weights, write_hf
from tests.helpers.mistral_files import write_mistral

IDS = torch.tensor([[5, 17, 3, 60, 22, 9, 41, 1, 13, 2, 33, 50]])


def logits(folder: Path) -> Tensor:
    """What transformers computes with the folder, in fp32."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of transformers are its own affair
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            found: Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"tied_embeddings": True},
        {"rope_scaling": RopeScaling(factor=4.0, original_context=16, kind="llama3")},
        {
            "rope_scaling": RopeScaling(factor=4.0, original_context=8, kind="dynamic"),
            "max_positions": 8,
        },
        {"head_dim": 16},
    ],
)
def test_transformers_computes_the_same_with_our_spelling(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny_config(n_kv_heads=4, rope_style="half", **{"max_positions": 64, **changes})
    weights = random_model(config)
    source = write_hf(tmp_path / "a", config, weights, is_half=True)
    again = converted(source, "b", "hf", shards=3)
    assert torch.equal(logits(again), logits(source))
    assert open_checkpoint(again).config == open_checkpoint(source).config


def test_llama_through_meta_has_the_same_logits(tmp_path: Path) -> None:
    config = tiny_config(n_kv_heads=4, rope_style="half")
    source = write_hf(tmp_path / "a", config, random_model(config), is_half=True)
    back = converted(converted(source, "b", "meta", shards=2), "c", "hf")
    assert torch.equal(logits(back), logits(source))


def test_gpt2_through_megatron_has_the_same_logits(tmp_path: Path) -> None:
    config = tiny_gpt2_config(n_layers=4)
    source = write_hf(tmp_path / "a", config, random_gpt2(config))
    back = converted(converted(source, "b", "megatron", tp=2, pp=2), "c", "hf")
    assert torch.equal(logits(back), logits(source))


def test_mistral_through_its_own_format_has_the_same_logits(tmp_path: Path) -> None:
    config = tiny_config(n_kv_heads=4, rope_style="half", sliding_window=4)
    source = write_hf(tmp_path / "a", config, random_model(config), is_half=True)
    back = converted(converted(source, "b", "mistral"), "c", "hf")
    assert torch.equal(logits(back), logits(source))
    unlimited = write_hf(
        tmp_path / "d", replace(config, sliding_window=None), random_model(config), is_half=True
    )
    assert not torch.equal(logits(unlimited), logits(source))


@pytest.mark.parametrize("n_shards", [1, 2, 7])
def test_files_are_those_of_save_pretrained(tmp_path: Path, n_shards: int) -> None:
    config = tiny_config(n_kv_heads=4)
    weights = random_model(config)
    write_meta(tmp_path / "a", config, weights)
    folder = converted(tmp_path / "a", "b", "hf", shards=n_shards)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == n_shards
    held = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert_same(held, hf_weights(config, weights, is_half=False))
    if n_shards > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in held.values())
        assert index["weight_map"] == {
            name: path.name for path in files for name in load_file(path)
        }
        sizes = [os.path.getsize(path) for path in files]
        assert max(sizes) < 2 * sum(sizes) / n_shards


def test_gpt2_is_written_as_conv1d(tmp_path: Path) -> None:
    config = tiny_gpt2_config(activation="gelu", ffn_dim=96)
    weights = random_gpt2(config)
    write_hf(tmp_path / "a", config, weights)
    folder = converted(tmp_path / "a", "b", "hf")
    held = load_file(folder / "model.safetensors")
    assert_same(
        held, {n: t.contiguous() for n, t in hf_weights(config, weights, is_half=False).items()}
    )
    spelled = json.loads((folder / "config.json").read_text())
    assert (spelled["activation_function"], spelled["n_inner"]) == ("gelu", 96)


def test_mixed_dtypes_are_aligned(tmp_path: Path) -> None:
    """bf16 matrices of an odd number of elements beside fp32 norms."""
    config = tiny_config(
        n_layers=1, vocab_size=63, dim=24, n_heads=3, n_kv_heads=3, head_dim=8, ffn_dim=7
    )
    weights = {
        name: tensor if name.endswith("norm.weight") else tensor.bfloat16()
        for name, tensor in random_model(config).items()
    }
    write_meta(tmp_path / "a", config, weights, dtype=torch.float32)
    torch.save(weights, tmp_path / "a" / "consolidated.00.pth")
    folder = converted(tmp_path / "a", "b", "hf")
    assert_same(load_file(folder / "model.safetensors"), hf_weights(config, weights, is_half=False))


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [(64, None), (32000, 2), (128256, [128001, 128008, 128009])],
)
def test_end_of_text_is_told_where_the_vocabulary_tells(
    tmp_path: Path, vocab_size: int, expected: object
) -> None:
    config = tiny_config(n_layers=1, vocab_size=vocab_size)
    write_meta(tmp_path / "a", config, random_model(config))
    folder = converted(tmp_path / "a", "b", "hf")
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == expected
    path = folder / "generation_config.json"
    assert (json.loads(path.read_text())["eos_token_id"] if path.exists() else None) == expected


def test_ids_of_the_source_are_kept(tmp_path: Path) -> None:
    config = tiny_config(rope_style="half")
    ids = {"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": 0}
    write_hf(tmp_path / "a", config, random_model(config), is_half=True, config_extra=ids)
    spelled = json.loads((converted(tmp_path / "a", "b", "hf") / "config.json").read_text())
    assert {name: spelled[name] for name in ids} == ids


def test_positions_of_mistral_are_claimed(tmp_path: Path) -> None:
    config = tiny_config(sliding_window=16)
    write_mistral(tmp_path / "a", config, random_model(config))
    folder = converted(tmp_path / "a", "b", "hf")
    read: ModelConfig = open_checkpoint(folder).config
    assert (read.sliding_window, read.max_positions) == (16, 32768)
    theirs = hf_config(replace(config, rope_style="half"))
    ours = json.loads((folder / "config.json").read_text())
    assert ours["model_type"] == theirs["model_type"] == "mistral"
