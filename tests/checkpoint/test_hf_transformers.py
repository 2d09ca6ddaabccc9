"""What transformers itself writes: its models open here, and every tensor is the one it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llama.checkpoint.formats.hf import HF
from llama.checkpoint.formats.hf_config import read_config
from llama.checkpoint.reader import CheckpointReader
from tests.helpers.contents import assert_same, contents
from tests.helpers.hf_files import hf_weights

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 16,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MODELS = {
    "llama": ("Llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama with biases": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama with its own head_dim": ("Llama", {**SIZES, "head_dim": 6}),
    "tied llama": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 7, "rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
    "mistral without a window": ("Mistral", {**SIZES, "sliding_window": None}),
    "gpt2": ("GPT2", GPT2),
    "untied gpt2": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40}),
}  # fmt: skip


def random_init(model: str) -> Any:
    """A model of transformers whose norms and biases are random as well."""
    family, values = MODELS[model]
    config = getattr(transformers, f"{family}Config")(**values)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    made = getattr(transformers, family + head)(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def assert_is(reader: CheckpointReader, made: Any) -> None:
    """Every tensor of the state dict is here, under the name and in the order that is ours."""
    wanted = {name: weight.detach() for name, weight in made.state_dict().items()}
    if made.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert_same(hf_weights(reader.config, contents(reader), is_half=True), wanted)


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_transformers_saves_opens_here(
    model: str, max_shard_size: str, tmp_path: Path
) -> None:
    made = random_init(model)
    made.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "5GB")
    reader = HF.open(tmp_path)
    assert_is(reader, made)
    assert reader.config.tied_embeddings == made.config.tie_word_embeddings
    assert reader.config.rope_style == "half"
    assert not reader.ignored
    assert all("unknown" not in note for note in reader.notes)
    rope, stated = reader.config.rope_scaling, getattr(made.config, "rope_parameters", None)
    if stated is not None:
        assert reader.config.rope_theta == stated["rope_theta"]
        assert (rope.kind if rope else "default") == stated["rope_type"]
    assert reader.config.sliding_window == getattr(made.config, "sliding_window", None)


@pytest.mark.parametrize("model", ["llama", "tied llama", "gpt2"])
def test_a_state_dict_as_old_versions_saved_it_opens_here(model: str, tmp_path: Path) -> None:
    made = random_init(model)
    made.config.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    reader = HF.open(tmp_path)
    assert_is(reader, made)
    assert reader.config.tied_embeddings == made.config.tie_word_embeddings


@pytest.mark.parametrize("family", ["Llama", "Mistral", "GPT2"])
def test_what_a_config_leaves_out_is_what_transformers_assumes(family: str, tmp_path: Path) -> None:
    getattr(transformers, f"{family}Config")().save_pretrained(tmp_path)
    (tmp_path / "short.json").write_text(f'{{"model_type": "{family.lower()}"}}')
    full = read_config(tmp_path / "config.json")
    assert full.model == read_config(tmp_path / "short.json").model
    assert full.notes == ()
