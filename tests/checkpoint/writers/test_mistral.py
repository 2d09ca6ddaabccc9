from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.conversions import assert_same, converted
from tests.helpers.hf_files import write_hf
from tests.helpers.mistral_files import mistral_params

# Fields of TransformerArgs in mistral-inference that a dense text model may give.
REQUIRED = {
    "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size",
}  # fmt: skip


@pytest.mark.parametrize("window", [None, 16])
def test_one_file_of_interleaved_pairs(tmp_path: Path, window: int | None) -> None:
    config = tiny_config(n_kv_heads=4, head_dim=8, rope_style="half", sliding_window=window)
    weights = random_model(config)
    write_hf(tmp_path / "a", config, weights)
    folder = converted(tmp_path / "a", "b", "mistral")
    assert_same(load_file(folder / "consolidated.safetensors"), weights)
    params = json.loads((folder / "params.json").read_text())
    assert params.keys() >= REQUIRED
    assert params == {**mistral_params(config), "vocab_size": config.vocab_size}
