"""Meta's params.json: real files, every key, and everything that must not get through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama.checkpoint.formats.params import ffn_dim, read_params
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError

SMALL = {"dim": 64, "n_layers": 2, "n_heads": 4}
# What Meta publishes: params.json, then ffn_dim, KV heads, head_dim, theta and rope factor.
PUBLISHED = {
    "Llama 1 7B": (
        '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, '
        '"vocab_size": -1}',
        (11008, 32, 128, 1e4, None),
    ),
    "Llama 1 30B": (
        '{"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06, '
        '"vocab_size": -1}',
        (17920, 52, 128, 1e4, None),
    ),
    "Llama 2 70B": (
        '{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, '
        '"n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}',
        (28672, 8, 128, 1e4, None),
    ),
    "Code Llama 34B": (
        '{"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 256, '
        '"ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}',
        (22016, 8, 128, 1e6, None),
    ),
    "Llama 3 8B": (
        '{"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, '
        '"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, '
        '"rope_theta": 500000.0}',
        (14336, 8, 128, 5e5, None),
    ),
    "Llama 3.1 405B in 16 files": (
        '{"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 16, "vocab_size": 128256, '
        '"ffn_dim_multiplier": 1.2, "multiple_of": 4096, "norm_eps": 1e-05, '
        '"rope_theta": 500000.0, "use_scaled_rope": true}',
        (53248, 16, 128, 5e5, 8.0),
    ),
    "Llama 3.2 1B": (
        '{"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, '
        '"ffn_dim_multiplier": 1.5, "multiple_of": 256, "norm_eps": 1e-05, '
        '"rope_theta": 500000.0, "use_scaled_rope": true}',
        (8192, 8, 64, 5e5, 32.0),
    ),
    "Llama 3.2 3B": (
        '{"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "vocab_size": 128256, '
        '"ffn_dim_multiplier": 1.0, "multiple_of": 256, "norm_eps": 1e-05, '
        '"rope_theta": 500000.0, "use_scaled_rope": true}',
        (8192, 8, 128, 5e5, 32.0),
    ),
}

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"dim": 0}, "dim must be an integer from 1 to 1,048,576, not 0"),
    ({"dim": -64}, "dim must be"),
    ({"dim": 64.0}, "not 64.0"),
    ({"dim": "64"}, "not '64'"),
    ({"dim": True}, "not True"),
    ({"dim": None}, "not None"),
    ({"dim": [64]}, "not a list"),
    ({"dim": 10**400}, "dim must be"),
    ({"n_layers": 2**20}, "n_layers must be"),
    ({"n_heads": 3}, "n_heads 3 does not divide dim 64"),
    ({"n_kv_heads": 3}, "n_kv_heads 3 does not divide n_heads 4"),
    ({"n_kv_heads": 0}, "n_kv_heads must be"),
    ({"head_dim": 5}, "head_dim must be even"),
    ({"vocab_size": 0}, "vocab_size must be"),
    ({"vocab_size": None}, "vocab_size must be"),
    ({"multiple_of": 0}, "multiple_of must be"),
    ({"ffn_dim_multiplier": 0}, "ffn_dim_multiplier must be a number"),
    ({"ffn_dim_multiplier": True}, "ffn_dim_multiplier must be a number"),
    ({"norm_eps": 0}, "norm_eps must be"),
    ({"norm_eps": "1e-5"}, "norm_eps must be"),
    ({"rope_theta": -1}, "rope_theta must be"),
    ({"use_scaled_rope": 1}, "use_scaled_rope must be true or false"),
    ({"rope_scaling_factor": 8}, "use_scaled_rope is not true"),
    ({"use_scaled_rope": True}, "lacks rope_theta"),
    ({"vocab_size": 128256}, "lacks rope_theta"),
    ({"hidden_dim": 128}, "lacks rope_theta"),
    (
        {"use_scaled_rope": True, "rope_theta": 5e5, "rope_high_freq_factor": 1},
        "high_freq_factor 1.0 above low_freq_factor 1.0",
    ),
    ({"dim": 2**20, "n_layers": 2**14, "n_heads": 2**10}, "not plausible"),
    ({"sliding_window": 4096}, "sliding_window 4096 means a sliding attention window"),
    ({"quantization_args": {"scheme": "int4"}}, "quantization_args an object means quantised"),
    ({"lora_args": {"rank": 16, "scale": 2.0}}, "lora_args an object means low-rank adapters"),
    ({"vision_chunk_size": 448}, "vision_chunk_size 448 means a vision encoder"),
    ({"vision_num_cross_attention_layers": 8}, "cross-attention to images"),
    ({"moe": {"num_experts": 8}}, "a mixture of experts"),
    ({"use_qk_norm": True}, "normalised queries and keys"),
    ({"rotary_percent": 0.5}, "unknown keys rotary_percent"),
    ({"model": {"dim": 64}}, "gives dim both inside and beside 'model'"),
    ({"model": 7}, "unknown keys model"),
]


def write(folder: Path, params: object) -> Path:
    path = folder / "params.json"
    path.write_text(params if isinstance(params, str) else json.dumps(params))
    return path


def config_of(path: Path, *, vocab_size: int = 100) -> ModelConfig:
    return read_params(path).model_config(vocab_size=vocab_size)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_params_make_the_published_sizes(model: str, tmp_path: Path) -> None:
    text, expected = PUBLISHED[model]
    stated: int = json.loads(text).get("vocab_size", -1)
    config = config_of(write(tmp_path, text), vocab_size=32000 if stated < 0 else stated)
    factor = config.rope_scaling.factor if config.rope_scaling else None
    assert (config.ffn_dim, config.n_kv_heads, config.head_dim, config.rope_theta, factor) == (
        expected
    )
    assert config.rope_style == "interleaved"
    assert config.norm_eps == json.loads(text)["norm_eps"]


def test_the_vocabulary_of_minus_one_is_left_to_the_tensors(tmp_path: Path) -> None:
    assert read_params(write(tmp_path, {**SMALL, "vocab_size": -1})).vocab_size is None
    assert read_params(write(tmp_path, SMALL)).vocab_size is None
    assert read_params(write(tmp_path, {**SMALL, "vocab_size": 7})).vocab_size == 7


def test_values_may_stand_under_the_key_model(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": SMALL, "norm_eps": 1e-6})
    assert (config_of(path).dim, config_of(path).norm_eps) == (64, 1e-6)


def test_explicit_sizes_win_over_the_formulas(tmp_path: Path) -> None:
    path = write(
        tmp_path, {**SMALL, "n_heads": 3, "head_dim": 6, "hidden_dim": 10, "rope_theta": 1e6}
    )
    config = config_of(path)
    assert (config.head_dim, config.ffn_dim) == (6, 10)
    assert read_params(path).n_query_rows == 18


def test_rope_scaling_numbers_in_the_file_win(tmp_path: Path) -> None:
    params = {"use_scaled_rope": True, "rope_theta": 5e5, "rope_scaling_factor": 16}
    path = write(tmp_path, {**SMALL, **params, "rope_high_freq_factor": 2})
    assert config_of(path).rope_scaling == RopeScaling(factor=16.0, high_freq_factor=2.0)


def test_sizes_of_a_run_are_ignored_and_said_so(tmp_path: Path) -> None:
    params = read_params(write(tmp_path, {**SMALL, "max_seq_len": 2048, "max_batch_size": 32}))
    assert set(params.ignored) == {"params.json: max_seq_len", "params.json: max_batch_size"}


@pytest.mark.parametrize(
    "key", ["sliding_window", "quantization_args", "vision_chunk_size", "use_qk_norm"]
)
@pytest.mark.parametrize("off", [None, False, -1])
def test_unsupported_keys_may_be_switched_off(key: str, off: object, tmp_path: Path) -> None:
    assert config_of(write(tmp_path, {**SMALL, key: off})) == config_of(write(tmp_path, SMALL))


@pytest.mark.parametrize("key", ["n_kv_heads", "ffn_dim_multiplier", "head_dim", "rope_theta"])
def test_null_means_absent(key: str, tmp_path: Path) -> None:
    assert config_of(write(tmp_path, {**SMALL, key: None})) == config_of(write(tmp_path, SMALL))


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES)
def test_bad_values_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, {**SMALL, **changes})
    with pytest.raises(CheckpointError) as caught:
        config_of(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_a_missing_size_is_named(key: str, tmp_path: Path) -> None:
    path = write(tmp_path, {name: size for name, size in SMALL.items() if name != key})
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        read_params(path)


def test_ffn_dim_rounds_up() -> None:
    assert ffn_dim(4096, multiple_of=256, multiplier=None) == 11008
    assert ffn_dim(3, multiple_of=8, multiplier=None) == 8
    assert ffn_dim(3, multiple_of=8, multiplier=1.1) == 8


V01 = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32,
    "n_kv_heads": 8, "norm_eps": 1e-05, "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "window", "theta"),
    [
        ({"sliding_window": 4096}, 4096, 1e4),  # v0.1
        ({"sliding_window": "4096"}, 4096, 1e4),
        ({"_sliding_window": [None, 128, "64"], "rope_theta": 1e6}, (None, 128, 64), 1e6),
        ({"sliding_window": [None, None]}, None, 1e6),
        ({"sliding_window": None, "model_type": "transformer", "moe": None}, None, 1e6),
        ({}, None, 1e6),
        ({"rope_theta": None, "sliding_window": 7}, 7, 1e4),
        ({"rope_theta": 5.0}, None, 5.0),
    ],
)
def test_the_params_of_mistral(
    changes: dict[str, Any], window: object, theta: float, tmp_path: Path
) -> None:
    path = write(tmp_path, {**V01, **changes})
    config = read_params(path, dialect="mistral").model_config(vocab_size=32000)
    assert (config.sliding_window, config.rope_theta, config.ffn_dim) == (window, theta, 14336)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 0}, "sliding_window must be tokens from 1 to 2,147,483,648"),
        ({"sliding_window": True}, "not True"),
        ({"sliding_window": "4k"}, "not '4k'"),
        ({"sliding_window": "9" * 5000}, "sliding_window must be"),
        ({"sliding_window": []}, "lists 0 windows"),
        ({"sliding_window": [[8]]}, "not a list"),
        ({"sliding_window": 8, "_sliding_window": 8}, "sliding_window, _sliding_window"),
        ({"moe": {"num_experts": 8}}, "a mixture of experts"),
        ({"lora": {"rank": 64}}, "low-rank adapters"),
        ({"vision_encoder": {}}, "a vision encoder"),
        ({"model_type": "mamba"}, "model_type must be 'transformer', not 'mamba'"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"hidden_dim": None}, "lacks hidden_dim"),
    ],
)
def test_what_the_params_of_mistral_must_not_say(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, {**V01, **changes})
    with pytest.raises(CheckpointError) as caught:
        read_params(path, dialect="mistral")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


KEYS = st.sampled_from(
    ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "model",
     "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope", "moe",
     "rope_scaling_factor", "rope_high_freq_factor", "max_seq_len", "sliding_window",
     "_sliding_window", "other"]
)  # fmt: skip
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1, 256)
    | st.floats()
    | st.text(max_size=5)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=9
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(KEYS, VALUES),
    drop=st.sets(KEYS),
    vocab_size=st.integers(1, 10**9),
    dialect=st.sampled_from(["meta", "mistral"]),
)
def test_fuzzed_params_make_a_config_or_a_checkpoint_error(
    changes: dict[str, Any], drop: set[str], vocab_size: int, dialect: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_params.json"
    params = {**(SMALL if dialect == "meta" else V01), "rope_theta": 1e4, **changes}
    path.write_text(json.dumps({key: params[key] for key in params if key not in drop}))
    try:
        config = read_params(path, dialect=dialect).model_config(vocab_size=vocab_size)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert config.n_heads % config.n_kv_heads == 0
        assert config.layer_parameters * config.n_layers <= 10**14
