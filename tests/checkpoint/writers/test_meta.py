from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.params import ffn_dim
from llama.checkpoint.writers.meta import feed_forward_params
from llama.config import RopeScaling
from llama.errors import UsageError
from tests.helpers.checkpoints import meta_file, random_model, tiny_config, write_meta
from tests.helpers.conversions import assert_same, converted, tensors_of
from tests.helpers.hf_files import write_hf

# Fields of ModelArgs in Meta's packages for Llama 2, 3 and 3.1.
MODEL_ARGS = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "norm_eps", "rope_theta", "use_scaled_rope",
}  # fmt: skip


@pytest.mark.parametrize("n_files", [1, 2, 4])
@pytest.mark.parametrize("embedding_split", [0, 1])
def test_files_are_cut_as_metas_layers_load_them(
    tmp_path: Path, n_files: int, embedding_split: int
) -> None:
    config = tiny_config(n_kv_heads=4)
    weights = random_model(config)
    write_meta(tmp_path / "a", config, weights)
    split = ("vocab", "hidden")[embedding_split]
    folder = converted(tmp_path / "a", "b", "meta", shards=n_files, embedding_split=split)
    for number in range(n_files):
        expected = meta_file(
            config, weights, number=number, n_files=n_files, embedding_split=embedding_split
        )
        path = folder / f"consolidated.{number:02d}.pth"
        assert_same(torch.load(path, weights_only=True, mmap=True), expected)
        assert_same(torch.load(path, weights_only=False), expected)
    assert json.loads((folder / "params.json").read_text()).keys() <= MODEL_ARGS


@pytest.mark.parametrize(("vocab_size", "width"), [(64, 16), (128256, 32)])
def test_the_embedding_is_cut_by_the_generation(
    tmp_path: Path, vocab_size: int, width: int
) -> None:
    config = tiny_config(n_layers=1, vocab_size=vocab_size)
    write_meta(tmp_path / "a", config, random_model(config), dtype=torch.bfloat16)
    folder = converted(tmp_path / "a", "b", "meta", shards=2)
    held = torch.load(folder / "consolidated.01.pth", weights_only=True, mmap=True)
    assert held["tok_embeddings.weight"].shape[1] == width


def test_more_files_than_kv_heads_are_written_as_the_405b_ones(tmp_path: Path) -> None:
    config = tiny_config(n_kv_heads=2)
    weights = random_model(config)
    write_meta(tmp_path / "a", config, weights)
    folder = converted(tmp_path / "a", "b", "meta", shards=8)
    assert open_checkpoint(folder).config == replace(config, n_kv_heads=8)
    keys = weights["layers.1.attention.wk.weight"].chunk(2)
    found = tensors_of(folder)["layers.1.attention.wk.weight"].chunk(8)
    assert all(torch.equal(found[i], keys[i // 4]) for i in range(8))


@pytest.mark.parametrize(
    ("dim", "width", "expected"),
    [
        (4096, 11008, {"multiple_of": 256}),
        (8192, 28672, {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),
        (4096, 14336, {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}),
        (16384, 53248, {"multiple_of": 4096, "ffn_dim_multiplier": 1.2}),
        (2048, 8192, {"multiple_of": 256, "ffn_dim_multiplier": 1.5}),
    ],
)
def test_published_widths_have_their_published_values(
    dim: int, width: int, expected: dict[str, Any]
) -> None:
    assert feed_forward_params(dim, width) == expected


@pytest.mark.parametrize("width", [1, 7, 100, 8191, 11008, 40000])
@pytest.mark.parametrize("dim", [32, 4096])
def test_every_width_has_values_that_give_it(dim: int, width: int) -> None:
    values = feed_forward_params(dim, width)
    made = ffn_dim(
        dim, multiple_of=values["multiple_of"], multiplier=values.get("ffn_dim_multiplier")
    )
    assert made == width


@pytest.mark.parametrize(
    ("dim", "factor", "keys"),
    [
        (32, 8.0, set()),
        (32, 32.0, {"rope_scaling_factor"}),
        (2048, 32.0, set()),
        (2048, 8.0, {"rope_scaling_factor"}),
    ],
)
def test_scaled_rope_is_said_as_meta_does(
    tmp_path: Path, dim: int, factor: float, keys: set[str]
) -> None:
    config = tiny_config(
        dim=dim, head_dim=dim // 8, n_layers=1, rope_style="half",
        rope_scaling=RopeScaling(factor=factor),
    )  # fmt: skip
    write_hf(tmp_path / "a", config, random_model(config), is_half=True)
    folder = converted(tmp_path / "a", "b", "meta")
    params = json.loads((folder / "params.json").read_text())
    assert params["use_scaled_rope"] is True
    assert params.keys() - MODEL_ARGS == keys
    assert open_checkpoint(folder).config.rope_scaling == config.rope_scaling


def test_rope_that_meta_has_no_keys_for_is_refused(tmp_path: Path) -> None:
    scaling = RopeScaling(factor=2.0, kind="linear")
    config = tiny_config(rope_style="half", rope_scaling=scaling)
    write_hf(tmp_path / "a", config, random_model(config), is_half=True)
    with pytest.raises(UsageError, match="RoPE is scaled otherwise than Llama 3's"):
        converted(tmp_path / "a", "b", "meta")
    again = open_checkpoint(converted(tmp_path / "a", "c", "megatron"))
    assert again.config.rope_scaling == scaling
