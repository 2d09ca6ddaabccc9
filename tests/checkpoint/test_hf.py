"""Hugging Face folders: every container gives the same tensors, and every disagreement is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.hf import HF
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError
from tests.helpers.checkpoints import Weights, random_model, tiny_config
from tests.helpers.contents import assert_same, contents
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import half, hf_weights, write_hf, write_shards

MODELS = {
    "llama": tiny_config(
        rope_style="half", n_kv_heads=2, norm_eps=1e-6, rope_scaling=RopeScaling(), max_positions=99
    ),
    "llama with biases": tiny_config(
        rope_style="half", attention_bias=True, mlp_bias=True, max_positions=9, rope_theta=5e5
    ),
    "tied llama": tiny_config(
        rope_style="half", tied_embeddings=True, max_positions=7, head_dim=6,
        rope_scaling=RopeScaling(factor=2.0, kind="linear"),
    ),
    "mistral": tiny_config(rope_style="half", n_kv_heads=4, sliding_window=5, max_positions=64),
    "gpt2": tiny_gpt2_config(),
    "untied gpt2": tiny_gpt2_config(tied_embeddings=False, ffn_dim=40, activation="gelu"),
}  # fmt: skip
INDEX = "model.safetensors.index.json"


def weights_of(config: ModelConfig) -> Weights:
    """Random ones, of which wq and wk rotate pairs, as Meta's do."""
    if config.architecture == "gpt2":
        return random_gpt2(config)
    weights = random_model(config)
    if config.tied_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def expected(config: ModelConfig) -> Weights:
    """The same as they must be read: wq and wk rotating halves."""
    weights = weights_of(config)
    if config.architecture == "gpt2":
        return weights
    for name, weight in weights.items():
        for linear, n_heads in (("wq", config.n_heads), ("wk", config.n_kv_heads)):
            if f".{linear}." in name:
                weights[name] = half(weight, n_heads)
    return weights


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        HF.open(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama in three safetensors files."""
    config = MODELS["llama"]
    return write_hf(tmp_path / "ckpt", config, weights_of(config), n_shards=3)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_every_container_gives_the_same_tensors(
    model: str, n_shards: int, kind: Any, tmp_path: Path
) -> None:
    config = MODELS[model]
    is_old = n_shards == 3
    write_hf(
        tmp_path, config, weights_of(config), kind=kind, n_shards=n_shards, old_spelling=is_old,
        has_buffers=is_old, has_prefix=not is_old,
    )  # fmt: skip
    reader = HF.open(tmp_path)
    assert reader.config == config
    assert_same(contents(reader), expected(config))
    n_buffers = 2 if config.architecture == "gpt2" else 1
    assert len(reader.ignored) == (n_buffers * config.n_layers if is_old else 0)


def test_slices_of_transposed_and_split_tensors_are_read(tmp_path: Path) -> None:
    config = MODELS["gpt2"]
    wanted = expected(config)
    reader = HF.open(write_hf(tmp_path, config, weights_of(config), dtype=torch.float64))
    for name, weight in wanted.items():
        for dim in range(weight.dim()):
            out = torch.empty_like(weight.narrow(dim, 3, 4))
            reader.read_into(out, name, dim=dim, start=3)
            assert torch.equal(out, weight.narrow(dim, 3, 4)), (name, dim)


def test_a_folder_is_recognised_among_all_formats(folder: Path, tmp_path: Path) -> None:
    reader = open_checkpoint(folder)
    assert (reader.format, reader.notes) == ("hf", ())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "consolidated.safetensors").touch()
    assert not HF.recognises(tmp_path / "other")
    assert not HF.recognises(tmp_path / "nowhere")


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = MODELS["tied llama"]
    reader = HF.open(write_hf(tmp_path, config, weights_of(config)))
    assert reader.tensors["output.weight"] is reader.tensors["tok_embeddings.weight"]
    assert reader.notes == ("the head is tied to the embedding",)


def test_a_stored_head_is_used_although_the_config_ties_it(tmp_path: Path) -> None:
    config = MODELS["llama"]
    extra = {"tie_word_embeddings": True}
    reader = HF.open(write_hf(tmp_path, config, weights_of(config), config_extra=extra))
    assert not reader.config.tied_embeddings
    assert reader.notes == (
        "config.json ties the head to the embedding, but a head is stored and used",
    )
    assert_same(contents(reader), expected(config))


def test_a_head_that_shares_the_bytes_of_the_embedding_is_tied(tmp_path: Path) -> None:
    config = MODELS["tied llama"]
    write_hf(tmp_path, config, weights_of(config), kind="bin")
    stored = hf_weights(config, weights_of(config), is_half=False)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    torch.save(stored, tmp_path / "pytorch_model.bin")
    reader = HF.open(tmp_path)
    assert reader.config.tied_embeddings
    assert reader.tensors["output.weight"] is reader.tensors["tok_embeddings.weight"]


def test_a_missing_head_is_explained(tmp_path: Path) -> None:
    config = MODELS["tied llama"]
    write_hf(tmp_path, config, weights_of(config), config_extra={"tie_word_embeddings": False})
    assert "output.weight; it is incomplete" in refusal(tmp_path)
    assert "its head is tied and its configuration does not say so" in refusal(tmp_path)


def test_safetensors_and_whole_files_are_preferred(tmp_path: Path) -> None:
    config = MODELS["llama"]
    weights = weights_of(config)
    for kind, n_shards in (("bin", 1), ("bin", 2), ("safetensors", 2), ("safetensors", 1)):
        junk = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        is_read = (kind, n_shards) == ("safetensors", 1)
        used = weights if is_read else junk
        write_hf(tmp_path, config, used, kind=kind, n_shards=n_shards)  # type: ignore[arg-type]
    reader = HF.open(tmp_path)
    assert_same(contents(reader), expected(config))
    assert reader.notes == (
        "model.safetensors is read, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json not",
    )


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
@pytest.mark.parametrize("said", [True, False])
def test_biases_must_be_those_of_the_config(key: str, said: bool, tmp_path: Path) -> None:
    config = MODELS["llama" if said else "llama with biases"]
    write_hf(tmp_path, config, weights_of(config), config_extra={key: said})
    assert ("lacks" if said else "tensors that its model would not use") in refusal(tmp_path)
    assert ".bias" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int32])
def test_quantised_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    config = MODELS["llama"]
    write_hf(tmp_path, config, weights_of(config), dtype=dtype)
    assert "tok_embeddings.weight is stored as" in refusal(tmp_path)
    assert "use the checkpoint before quantisation" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("model", "name", "shape", "message"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.qweight", (1,), "no llama model"),
        ("llama", "output.weight", (64, 32), "no llama model of Hugging Face has: output.weight"),
        ("llama", "norm.weight", (32,), "model.norm.weight and norm.weight are the same tensor"),
        ("llama", "model.layers.7.mlp.up_proj.weight", (48, 32), "would not use: layers.7."),
        ("llama", "model.layers.00.mlp.up_proj.weight", (48, 32), "no llama model"),
        ("llama", "model.embed_tokens.weight", (63, 32), "asks for (64, 32)"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (32, 95), "has 95 outputs, but the queries"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (96,), "has shape (96,), but is a matrix"),
        ("gpt2", "transformer.h.0.attn.c_attn.bias", (), "has 1 outputs"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (31, 96), "asks for (32, 32)"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight", (2, 2, 2), "but is a matrix"),
        ("gpt2", "h.1.ln_1.weight", (32,), "are the same tensor"),
    ],
)
def test_tensors_of_another_model_are_refused(
    model: str, name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    config = MODELS[model]
    write_hf(tmp_path, config, weights_of(config))
    stored = hf_weights(config, weights_of(config), is_half=False)
    write_shards(tmp_path, {**stored, name: torch.zeros(shape)}, kind="safetensors", n_shards=1)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("missing", [[2], [1, 3]])
def test_missing_shards_are_named(missing: list[int], folder: Path) -> None:
    names = [f"model-{number:05d}-of-00003.safetensors" for number in missing]
    for name in names:
        (folder / name).unlink()
    message = refusal(folder)
    assert f"needs 3 files, but {3 - len(names)} are there: {', '.join(names)} missing" in message


def test_shards_without_an_index_are_not_guessed_at(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert HF.recognises(folder)
    assert "model-00001-of-00003.safetensors" in refusal(folder)
    assert "but no index; it needs one of model.safetensors, " + INDEX in refusal(folder)


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "lacks config.json" in refusal(folder)


def test_a_shard_that_is_no_file_of_its_kind_is_named(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 77\n")
    assert f"{shard} (" in refusal(folder)
    assert "a Git LFS pointer to 77 bytes" in refusal(folder)


def edit_index(folder: Path, **changes: Any) -> None:
    """Change what the weight_map says; None removes a name."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    kept = {name: file for name, file in index["weight_map"].items() if file is not None}
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": kept}))


def test_the_index_must_agree_with_the_files(folder: Path) -> None:
    name, first, last = (
        "lm_head.weight",
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )
    edit_index(folder, **{name: first})
    assert f"{first} lacks {name}, which {INDEX} says it holds" in refusal(folder)
    edit_index(folder, **{name: None})
    assert f"{last} holds {name}, which {INDEX} does not say" in refusal(folder)
    edit_index(folder, **{name: last, "more": first})
    assert f"{first} lacks more" in refusal(folder)
    edit_index(folder, more=None)
    assert HF.open(folder).config == MODELS["llama"]


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    twice = {"lm_head.weight": torch.zeros(64, 32), "more": torch.zeros(1)}
    save_file(twice, folder / "extra.safetensors")
    edit_index(folder, more="extra.safetensors")
    assert "extra.safetensors holds lm_head.weight" in refusal(folder)


def test_old_buffers_need_not_be_in_the_index(tmp_path: Path) -> None:
    config = MODELS["llama"]
    write_hf(tmp_path, config, weights_of(config), n_shards=2, has_buffers=True)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_index(tmp_path, **{buffer: None})
    assert HF.open(tmp_path).ignored[buffer].startswith("RoPE frequencies")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "weight_map must map"),
        ({"weight_map": {}}, "weight_map must map"),
        ({"weight_map": ["a"]}, "weight_map must map"),
        ({"weight_map": {"lm_head.weight": 7}}, "gives 'lm_head.weight' the file 7"),
        ({"weight_map": {"lm_head.weight": None}}, "the file None; it must be a name"),
        ({"weight_map": {"a": "../model.safetensors"}}, "must be plain names inside its folder"),
    ],
)
def test_a_faulty_index_is_refused(content: object, message: str, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps(content))
    assert message in refusal(folder)


NAMES = st.sampled_from(["lm_head.weight", "model.norm.weight", "", "x", "rotary_emb.inv_freq"])
FILES = st.sampled_from(
    ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "config.json", INDEX,
     ".", "..", "", "../ckpt/config.json", "a\0b", "\ud800", "gone.safetensors", "/dev/zero"]
)  # fmt: skip
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
MAPS = st.dictionaries(NAMES, FILES | JUNK | st.lists(JUNK, max_size=2), max_size=3)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MODELS["llama"]
    return write_hf(tmp_path_factory.mktemp("hf") / "ckpt", config, weights_of(config), n_shards=3)


@pytest.fixture(scope="module")
def true_index(fuzzed: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fuzzed / INDEX).read_text())
    return found


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=MAPS, replaced=st.none() | MAPS | JUNK, drop=st.sets(NAMES), cut=st.integers(0, 99))
def test_a_fuzzed_index_opens_the_model_or_is_a_checkpoint_error(
    changes: dict[str, Any],
    replaced: Any,
    drop: set[str],
    cut: int,
    fuzzed: Path,
    true_index: dict[str, Any],
) -> None:
    weight_map = {**true_index["weight_map"], **changes}
    kept = {name: file for name, file in weight_map.items() if name not in drop}
    text = json.dumps({**true_index, "weight_map": kept if replaced is None else replaced})
    (fuzzed / INDEX).write_text(text[: len(text) - max(0, cut - 90)])
    try:
        reader = HF.open(fuzzed)
    except CheckpointError as error:
        assert str(fuzzed) in str(error)
    else:
        assert reader.config == MODELS["llama"]
        reader.close()
