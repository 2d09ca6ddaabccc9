"""One checkpoint per family of Llama, in its publisher's own spelling, answers as the oracle; and
what is of another family is refused by name before anything but its config is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError
from llama.parallel.context import single
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine

TOKENS = [1, 9, 33, 60, 2, 47, 5, 18, 29, 51, 0, 40]


@dataclass(frozen=True)
class Family:
    """`given` is what its params.json says beside the sizes, `config` what that must mean."""

    config: ModelConfig
    given: dict[str, Any] = field(default_factory=dict)
    embedding_split: int = 0
    table: str | None = None


# Widths of 32 come from the formula as 256 · ceil(85 / 256) without a multiplier.
META = {
    "Llama 1": Family(
        tiny_config(ffn_dim=256, norm_eps=1e-6),
        {"multiple_of": 256, "norm_eps": 1e-6, "vocab_size": -1},
        embedding_split=1,
        table="layers.{}.attention.inner_attention.rope.freqs",
    ),
    "Llama 2": Family(
        tiny_config(n_kv_heads=2, ffn_dim=128),
        {"multiple_of": 64, "ffn_dim_multiplier": 1.3, "n_kv_heads": 2, "norm_eps": 1e-5,
         "vocab_size": -1},
        embedding_split=1,
        table="rope.freqs",
    ),
    "Code Llama": Family(
        tiny_config(ffn_dim=256, vocab_size=32016, rope_theta=1e6),
        {"multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000},
        embedding_split=1,
        table="rope.freqs",
    ),
    "Llama 3": Family(
        tiny_config(n_kv_heads=2, ffn_dim=128, rope_theta=5e5),
        {"multiple_of": 64, "ffn_dim_multiplier": 1.3, "n_kv_heads": 2, "norm_eps": 1e-5,
         "vocab_size": 64, "rope_theta": 500000.0},
    ),
    "Llama 3.1": Family(
        tiny_config(n_kv_heads=2, ffn_dim=128, rope_theta=5e5, rope_scaling=RopeScaling(8.0)),
        {"multiple_of": 64, "ffn_dim_multiplier": 1.3, "n_kv_heads": 2, "norm_eps": 1e-5,
         "vocab_size": 64, "rope_theta": 500000.0, "use_scaled_rope": True},
    ),
    # Of the width of the 1B, from which alone its factor is known.
    "Llama 3.2": Family(
        tiny_config(dim=2048, n_layers=1, n_kv_heads=2, head_dim=256, ffn_dim=64, rope_theta=5e5,
                    rope_scaling=RopeScaling(32.0)),
        {"multiple_of": 64, "ffn_dim_multiplier": 0.01, "n_kv_heads": 2, "norm_eps": 1e-5,
         "vocab_size": 64, "rope_theta": 500000.0, "use_scaled_rope": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", META)
def test_a_family_in_metas_files_answers_as_the_oracle(name: str, tmp_path: Path) -> None:
    family, config = META[name], META[name].config
    weights = random_model(config)
    own = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads}
    tables = {}
    if family.table is not None:
        layers = range(config.n_layers)
        tables = {family.table.format(layer): torch.full((2,), 7.0) for layer in layers}
    write_meta(
        tmp_path,
        config,
        {**weights, **tables},
        embedding_split=family.embedding_split,
        rope_freqs=False,
    )
    (tmp_path / "params.json").write_text(json.dumps(own | family.given))
    assert open_checkpoint(tmp_path).config == config
    found = make_engine(single(), tmp_path).forward_rows(torch.tensor([TOKENS]), 0)[0]
    expected = oracle.logits(config, weights, TOKENS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


FOREIGN_HF = {
    "qwen2": "Qwen2ForCausalLM", "gemma": "GemmaForCausalLM", "mixtral": "MixtralForCausalLM",
    "phi3": "Phi3ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM", "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration", "llava": "LlavaLlamaForCausalLM",
    "ministral": "MinistralForCausalLM", "gptj": "GPTJForCausalLM",
}  # fmt: skip


@pytest.mark.parametrize("model_type", FOREIGN_HF)
def test_another_architecture_of_hugging_face_is_refused(model_type: str, tmp_path: Path) -> None:
    """Its weights are not looked at: here they are none."""
    config = {"model_type": model_type, "architectures": [FOREIGN_HF[model_type]]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match=f"'{model_type}'.* llama, mistral, gpt2 are run"):
        open_checkpoint(tmp_path)


SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "rope_theta": 5e5}
MISTRAL = {"head_dim": 16, "hidden_dim": 96, "n_kv_heads": 4, "norm_eps": 1e-5, "vocab_size": 64}
FOREIGN_PARAMS: list[tuple[str, Any, str]] = [
    ("moe_args", {"num_experts": 16}, "a mixture of experts; use a dense model"),
    ("moe", {"num_experts": 8, "num_experts_per_tok": 2}, "a mixture of experts; use a dense"),
    ("ffn_exp", 4.0, "another feed-forward size rule"),
    ("nope_layer_interval", 4, "layers without positions"),
    ("vision_chunk_size", 560, "a vision encoder; use the text-only model"),
    ("vision_args", {"dim": 64}, "a vision encoder"),
    ("vision_encoder", {"hidden_size": 64}, "a vision encoder"),
    ("lora", {"rank": 64, "scaling": 2.0}, "low-rank adapters"),
    ("lora_args", {"rank": 16, "scale": 2.0}, "low-rank adapters"),
    ("quantization", {"qformat_weight": "fp8_e4m3"}, "quantised weights"),
    ("yarn", {"factor": 16}, "RoPE stretched by YaRN"),
    ("model_type", "mamba", "model_type must be 'transformer', not 'mamba'"),
]


@pytest.mark.parametrize("weights", ["consolidated.00.pth", "consolidated.safetensors"])
@pytest.mark.parametrize(("key", "value", "message"), FOREIGN_PARAMS)
def test_another_architecture_of_params_json_is_refused(
    key: str, value: Any, message: str, weights: str, tmp_path: Path
) -> None:
    (tmp_path / weights).write_text("no weights")
    sizes = SIZES if weights.endswith(".pth") else SIZES | MISTRAL
    (tmp_path / "params.json").write_text(json.dumps(sizes | {key: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "params.json") in str(caught.value)
