"""config.json of Llama, Mistral and GPT-2 in both spellings: defaults, refusals, and a fuzz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama.checkpoint.formats.hf_config import read_config
from llama.checkpoint.formats.hf_keys import DEFAULTS, HARMLESS, REFUSED, ROPE_KEYS
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError

LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SCALING = RopeScaling(factor=32.0)


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def model(folder: Path, model_type: str, **values: Any) -> ModelConfig:
    return read_config(write(folder, {"model_type": model_type, **values})).model


def test_missing_keys_of_llama_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    assert model(tmp_path, "llama") == ModelConfig(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11008,
        vocab_size=32000, norm_eps=1e-6, rope_theta=10000.0, rope_style="half", max_positions=2048,
    )  # fmt: skip


def test_missing_keys_of_mistral_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    assert model(tmp_path, "mistral") == ModelConfig(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14336,
        vocab_size=32000, norm_eps=1e-6, rope_theta=10000.0, rope_style="half",
        sliding_window=4096, max_positions=131072,
    )  # fmt: skip
    assert model(tmp_path, "mistral", sliding_window=None).sliding_window is None


def test_missing_keys_of_gpt2_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    assert model(tmp_path, "gpt2") == ModelConfig(
        dim=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, ffn_dim=3072,
        vocab_size=50257, norm_eps=1e-5, rope_style="half", attention_bias=True, mlp_bias=True,
        architecture="gpt2", activation="gelu_tanh", tied_embeddings=True, max_positions=1024,
    )  # fmt: skip


def test_every_value_arrives(tmp_path: Path) -> None:
    assert model(
        tmp_path, "mistral", hidden_size=96, intermediate_size=10, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=4, vocab_size=11, rms_norm_eps=1e-3,
        rope_theta=7, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        sliding_window=5, max_position_embeddings=9, hidden_act="silu",
    ) == ModelConfig(
        dim=96, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=4, ffn_dim=10, vocab_size=11,
        norm_eps=1e-3, rope_theta=7.0, rope_style="half", attention_bias=True, mlp_bias=True,
        tied_embeddings=True, sliding_window=5, max_positions=9,
    )  # fmt: skip
    small = model(
        tmp_path, "gpt2", n_embd=32, n_inner=40, n_layer=2, n_head=4, n_positions=5, vocab_size=7,
        layer_norm_epsilon=1e-3, activation_function="gelu", tie_word_embeddings=False,
    )  # fmt: skip
    assert (small.ffn_dim, small.max_positions, small.activation) == (40, 5, "gelu")
    assert (small.norm_eps, small.tied_embeddings, small.n_kv_heads) == (1e-3, False, 4)


@pytest.mark.parametrize(
    ("values", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, SCALING),
        ({"rope_scaling": {**LLAMA3, "type": "llama3"}}, 1e4, SCALING),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 1e4,
         RopeScaling(factor=4.0, kind="linear")),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, 1e4,
         RopeScaling(factor=4.0, original_context=2048, kind="dynamic")),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5,
                              "original_max_position_embeddings": 64},
          "max_position_embeddings": 64}, 5e5,
         RopeScaling(factor=2.0, original_context=64, kind="dynamic")),
        ({"rope_scaling": {"type": "default"}}, 1e4, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 5e5, SCALING),
        ({"rope_parameters": {**LLAMA3}, "rope_theta": 7.0}, 7.0, SCALING),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_theta": 7.0}, 5e5, SCALING),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}, 5e5,
         RopeScaling(factor=2.0, kind="linear")),
        ({"rope_parameters": {"full_attention": {**LLAMA3, "rope_theta": 5e5}}}, 5e5, SCALING),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
         5e5, None),
        ({"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 3.0}}},
         3.0, None),
        ({"rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 1e4}}, 1e4, SCALING),
    ],
)  # fmt: skip
def test_rope_in_both_spellings(
    values: dict[str, Any], theta: float, scaling: RopeScaling | None, tmp_path: Path
) -> None:
    found = model(tmp_path, "llama", **values)
    assert (found.rope_theta, found.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"rope_scaling": {"type": kind, "factor": 2.0}}, f"rope_type '{kind}' in rope_scaling")
            for kind in ("yarn", "longrope", "su", "mrope")
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "known: default, linear, llama3, dynamic"),
        ({"rope_parameters": {"rope_type": 7}}, "rope_type 7"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type a list"),
        ({"rope_parameters": {"type": "linear", "rope_type": "default"}}, "contradict each other"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling lacks factor, which dynamic needs"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 8}}, "has alpha, which"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0,
                           "original_max_position_embeddings": 64}},
         "has original_max_position_embeddings 64, but rope_type dynamic begins at "
         "max_position_embeddings 2048"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim above 2"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling lacks factor, which linear needs"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks low_freq_factor, high"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor must be a number"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor 1.0 above"),
        ({"rope_scaling": {**LLAMA3, "mscale": 1.0}}, "rope_scaling has mscale"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "has partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "rope_theta must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object or null, not 'linear'"),
        ({"rope_parameters": {"full_attention": {}, "factor": 2}}, "factor beside its kinds"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 2.0},
                              "sliding_attention": {"rope_theta": 3.0}}}, "another RoPE"),
        ({"rope_parameters": {"full_attention": None}}, "another RoPE"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1e4}}, "contradict each other"),
    ],
)  # fmt: skip
def test_rope_that_is_not_run_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        model(tmp_path, "llama", **values)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("name", ["qwen2", "mixtral", "gemma", "LLAMA", 7, ["llama"], {}])
def test_other_architectures_are_refused_with_those_that_run(name: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has model_type .*llama, mistral, gpt2 are run"):
        model(tmp_path, name)


def test_a_file_without_model_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks model_type"):
        read_config(write(tmp_path, {"hidden_size": 32}))


BAD = [
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "means quantised weights"),
    ("llama", {"num_local_experts": 8}, "means a mixture of experts"),
    ("llama", {"partial_rotary_factor": 0.5}, "means RoPE on a part of each head"),
    ("llama", {"residual_multiplier": True}, "residual_multiplier True means scaled activations"),
    ("llama", {"sliding_window": 4096}, "sliding_window 4096 in a model of model_type llama"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not run; known: silu"),
    ("llama", {"hidden_act": None}, "hidden_act must be a name, not None"),
    ("llama", {"hidden_size": 100, "num_attention_heads": 3}, "3 heads do not divide the 100"),
    ("llama", {"num_key_value_heads": 5}, "n_kv_heads 5 does not divide n_heads 32"),
    ("llama", {"head_dim": 7}, "head_dim must be even"),
    ("llama", {"hidden_size": True}, "hidden_size must be an integer from 1 to 1,048,576"),
    ("llama", {"hidden_size": 32.0}, "hidden_size must be an integer"),
    ("llama", {"vocab_size": None}, "vocab_size must be an integer"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer"),
    ("llama", {"num_hidden_layers": "3"}, "not '3'"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps must be a number"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    ("llama", {"hidden_size": 2**20, "num_hidden_layers": 2**14}, "parameters; more than"),
    ("mistral", {"sliding_window": 0}, "sliding_window must be an integer"),
    ("gpt2", {"activation_function": "relu"}, "activation_function 'relu' is not run; known: gelu"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "divided by the number of their layer"),
    ("gpt2", {"scale_attn_weights": False}, "not divided by sqrt(head_dim)"),
    ("gpt2", {"add_cross_attention": True}, "means attention to an encoder"),
    ("gpt2", {"n_head": 7}, "7 heads do not divide the 768"),
    ("gpt2", {"n_positions": None}, "n_positions must be an integer"),
    ("llama", {"layer_types": ["sliding_attention"] * 32}, "must be full_attention for every"),
    ("mistral", {"layer_types": ["full_attention"]}, "must be sliding_attention for every"),
    ("mistral", {"layer_types": 7}, "layer_types must be"),
    ("llama", {"original_max_position_embeddings": 8192}, "belongs into rope_parameters"),
    ("gpt2", {"n_embd": 768, "hidden_size": 32}, "n_embd 768 and hidden_size 32 are the same"),
    ("llama", {"use_sliding_window": True}, "use_sliding_window True and sliding_window None"),
    ("mistral", {"use_sliding_window": False}, "False and sliding_window 4096 contradict"),
    ("mistral", {"sliding_window_pattern": 4}, "means windows in some layers"),
    ("llama", {"rope_interleaved": True}, "means RoPE of adjacent pairs"),
    ("llama", {"attention_multiplier": 0.5}, "means scaled activations"),
    ("llama", {"hidden_activation": "gelu_pytorch_tanh"}, "means another activation"),
    ("llama", {"position_embedding_type": "alibi"}, "means positions of another kind"),
    (
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures has 'LlamaForSequenceClassification'; of model_type llama, LlamaForCausalLM",
    ),
    ("mistral", {"architectures": ["LlamaForCausalLM"]}, "MistralForCausalLM, MistralModel are"),
    ("gpt2", {"architectures": [["GPT2LMHeadModel"]]}, "architectures has a list"),
    ("gpt2", {"architectures": "GPT2ForTokenClassification"}, "GPT2LMHeadModel, GPT2Model are run"),
]


@pytest.mark.parametrize(("model_type", "values", "message"), BAD)
def test_what_would_change_the_model_is_refused(
    model_type: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        model(tmp_path, model_type, **values)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_refused_keys_may_have_their_neutral_values(key: str, tmp_path: Path) -> None:
    for value in REFUSED[key][0]:
        assert model(tmp_path, "llama", **{key: value}) == model(tmp_path, "llama")


@pytest.mark.parametrize("key", ["n_embd", "rope_parameters", "rope_scaling", "layer_types"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_deep_values_do_not_overflow_the_stack(key: str, model_type: str, tmp_path: Path) -> None:
    depth = 800
    deep = '{"full_attention":' * depth + "7" + "}" * depth
    path = tmp_path / "config.json"
    path.write_text(f'{{"model_type": "{model_type}", "hidden_size": {deep}, "{key}": {deep}}}')
    with pytest.raises(CheckpointError, match=r"n_embd must be|hidden_size must be|nested too"):
        read_config(path)
    path.write_text(f'{{"model_type": "mistral", "rope_parameters": {deep}}}')
    with pytest.raises(CheckpointError, match=r"has full_attention, which|nested too"):
        read_config(path)


@pytest.mark.parametrize(
    ("model_type", "kind"), [("llama", "full_attention"), ("mistral", "sliding_attention")]
)
def test_layers_of_one_kind_may_be_listed(model_type: str, kind: str, tmp_path: Path) -> None:
    found = read_config(write(tmp_path, {"model_type": model_type, "layer_types": [kind] * 32}))
    assert found.model == model(tmp_path, model_type)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", {"architectures": ["LLaMAForCausalLM"], "use_sliding_window": False}),
        ("llama", {"architectures": None, "pretraining_tp": 2}),
        ("mistral", {"architectures": ["MistralForCausalLM"], "use_sliding_window": True}),
        ("gpt2", {"architectures": ["GPT2LMHeadModel"], "reorder_and_upcast_attn": True}),
    ],
)
def test_what_changes_nothing_goes_without_a_word(
    model_type: str, values: dict[str, Any], tmp_path: Path
) -> None:
    found = read_config(write(tmp_path, {"model_type": model_type, **values}))
    assert found.model == model(tmp_path, model_type)
    assert found.notes == found.warnings == ()


def test_gpt2_takes_the_other_names_of_its_sizes(tmp_path: Path) -> None:
    names = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 9,
    }  # fmt: skip
    found = model(tmp_path, "gpt2", **names, n_head=4)
    assert (found.dim, found.n_layers, found.n_heads, found.max_positions) == (32, 2, 4, 9)


def test_code_is_ignored_and_unknown_keys_are_named(tmp_path: Path) -> None:
    values = {"auto_map": {"AutoModel": "evil.Model"}, "wavelet": 3, "torch_dtype": "bfloat16"}
    found = read_config(write(tmp_path, {"model_type": "llama", **values}))
    assert found.notes == ("config.json: auto_map is ignored; no code of a checkpoint is run",)
    assert found.warnings == ("config.json: no use is made of the unknown keys wavelet",)


def test_harmless_keys_go_without_a_note(tmp_path: Path) -> None:
    values = {**dict.fromkeys(HARMLESS, 1), "model_type": "gpt2"}
    found = read_config(write(tmp_path, values))
    assert found.notes == found.warnings == ()


KEYS = st.sampled_from(
    sorted({*DEFAULTS["llama"], *DEFAULTS["gpt2"], *REFUSED, *ROPE_KEYS, "model_type", "other"})
)
ROPE_NAMES = st.sampled_from(
    [*LLAMA3, "type", "rope_theta", "full_attention", "sliding_attention", "other"]
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1, 256)
    | st.floats()
    | st.sampled_from(
        ["llama3", "linear", "dynamic", "default", "yarn", "silu", "gelu", "gpt2", "mistral"]
    )
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ROPE_NAMES, inner),
    max_leaves=9,
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(KEYS, VALUES, max_size=4),
    rope=st.none() | st.dictionaries(ROPE_NAMES, PLAIN),
    model_type=st.sampled_from(["llama", "mistral", "gpt2"]),
)
def test_a_fuzzed_config_makes_a_model_or_a_checkpoint_error(
    changes: dict[str, Any], rope: dict[str, Any] | None, model_type: str, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_config.json"
    values = {"model_type": model_type, "rope_scaling": rope, **changes}
    path.write_text(json.dumps(values))
    try:
        found = read_config(path).model
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert found.n_heads % found.n_kv_heads == 0
        assert found.layer_parameters * found.n_layers <= 10**14
