"""Meta's model names: the args, the functions beside the model, and the model as one process."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import llama.model as face
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError, UsageError
from llama.generation import Llama
from llama.model import ModelArgs, Transformer
from llama.tokenizer import Tokenizer
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.tokenizers import write_sentencepiece

PROMPT = [1, 17, 42, 9, 3, 60, 8, 8, 23]


def args_of(config: ModelConfig, **changes: Any) -> ModelArgs:
    return ModelArgs.from_config(config, **{"max_batch_size": 4, "max_seq_len": 32, **changes})


def test_model_args_are_the_union_of_all_releases_with_llama_2s_defaults() -> None:
    assert dataclasses.asdict(ModelArgs()) == {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": None,
        "vocab_size": -1,
        "multiple_of": 256,
        "ffn_dim_multiplier": None,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "use_scaled_rope": False,
        "max_batch_size": 32,
        "max_seq_len": 2048,
        "head_dim": None,
        "rope_scaling_factor": None,
        "rope_high_freq_factor": None,
    }
    with pytest.raises(TypeError, match="sliding_window"):
        ModelArgs(sliding_window=4096)  # type: ignore[call-arg]


LLAMA_2_70B = {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8,
               "ffn_dim_multiplier": 1.3, "multiple_of": 4096}  # fmt: skip
LLAMA_3_8B = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "rope_theta": 5e5,
              "ffn_dim_multiplier": 1.3, "multiple_of": 1024}  # fmt: skip
LLAMA_32_3B = {"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "rope_theta": 5e5,
               "ffn_dim_multiplier": 1.0, "use_scaled_rope": True}  # fmt: skip


@pytest.mark.parametrize(
    ("params", "ffn_dim", "scaling"),
    [
        ({}, 11008, None),
        (LLAMA_2_70B, 28672, None),
        (LLAMA_3_8B, 14336, None),
        (LLAMA_3_8B | {"use_scaled_rope": True}, 14336, RopeScaling(factor=8.0)),
        (LLAMA_32_3B, 8192, RopeScaling(factor=32.0)),
    ],
)
def test_published_args_make_the_published_sizes(
    params: dict[str, Any], ffn_dim: int, scaling: RopeScaling | None
) -> None:
    config = ModelArgs(**params).to_config(vocab_size=32000)
    assert (config.ffn_dim, config.rope_scaling) == (ffn_dim, scaling)
    assert config.n_kv_heads == params.get("n_kv_heads", 32)
    assert config.rope_theta == params.get("rope_theta", 10000.0)


@pytest.mark.parametrize("ffn_dim", [48, 256, 11008, 14336, 28672, 997])
@pytest.mark.parametrize("dim", [32, 4096])
def test_args_of_a_config_give_that_config(dim: int, ffn_dim: int) -> None:
    config = tiny_config(dim=dim, head_dim=dim // 8, ffn_dim=ffn_dim, rope_theta=1e6)
    assert args_of(config).to_config(vocab_size=config.vocab_size) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": 8}, (8, None, None)),
        ({"rope_scaling": RopeScaling()}, (None, None, None)),
        ({"rope_scaling": RopeScaling(32.0, high_freq_factor=2.0)}, (None, 32.0, 2.0)),
        ({"dim": 2048, "head_dim": 256, "rope_scaling": RopeScaling(32.0)}, (None, None, None)),
        ({"dim": 2048, "head_dim": 256, "rope_scaling": RopeScaling(8.0)}, (None, 8.0, None)),
    ],
)
def test_args_say_what_metas_defaults_do_not(
    changes: dict[str, Any], said: tuple[int | None, float | None, float | None]
) -> None:
    config = tiny_config(rope_theta=5e5, **changes)
    args = args_of(config)
    assert (args.head_dim, args.rope_scaling_factor, args.rope_high_freq_factor) == said
    assert args.to_config(vocab_size=config.vocab_size) == config


def test_functions_have_metas_signatures() -> None:
    signatures = {
        "precompute_freqs_cis": "(dim, end, theta=10000.0, use_scaled=False)",
        "reshape_for_broadcast": "(freqs_cis, x)",
        "apply_rotary_emb": "(xq, xk, freqs_cis)",
        "repeat_kv": "(x, n_rep)",
    }
    for name, expected in signatures.items():
        signature = inspect.signature(getattr(face, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == expected
    assert list(inspect.signature(Transformer).parameters) == ["params"]
    assert list(inspect.signature(Transformer.forward).parameters) == [
        "self",
        "tokens",
        "start_pos",
        "output_hidden_states",
        "output_attentions",
    ]
    for name in ("RMSNorm", "Attention", "FeedForward", "TransformerBlock"):
        assert issubclass(getattr(face, name), torch.nn.Module)


def test_precompute_freqs_cis_is_the_table_of_rotations() -> None:
    table = face.precompute_freqs_cis(8, 5, theta=100.0)
    assert table.dtype == torch.complex64
    for position in range(5):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            expected = complex(math.cos(angle), math.sin(angle))
            assert abs(complex(table[position, pair]) - expected) < 1e-6


def test_scaled_frequencies_are_llama_31s() -> None:
    config = tiny_config(head_dim=128, rope_theta=5e5, rope_scaling=RopeScaling(factor=8.0))
    table = face.precompute_freqs_cis(128, 3, theta=5e5, use_scaled=True)
    assert torch.allclose(table[2].angle(), 2 * oracle.frequencies(config), atol=1e-5)


def test_reshape_for_broadcast() -> None:
    table = torch.randn(5, 4)
    assert face.reshape_for_broadcast(table, torch.zeros(2, 5, 3, 4)).shape == (1, 5, 1, 4)
    with pytest.raises(UsageError, match=r"freqs_cis \(5, 4\) must be dims 1 and -1 of x \(2, 6"):
        face.reshape_for_broadcast(table, torch.zeros(2, 6, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_rotary_emb_turns_neighbouring_pairs(dtype: torch.dtype) -> None:
    config = tiny_config(head_dim=8)
    xq, xk = torch.randn(2, 5, 4, 8, dtype=dtype), torch.randn(2, 5, 2, 8, dtype=dtype)
    table = face.precompute_freqs_cis(8, 10)[:5]
    for turned, x in zip(face.apply_rotary_emb(xq, xk, table), (xq, xk), strict=True):
        assert turned.dtype == dtype and turned.shape == x.shape
        for row in range(2):
            expected = oracle.rotate(config, x[row].float()).to(dtype)
            assert torch.allclose(turned[row], expected, atol=1e-5)


def test_repeat_kv_repeats_each_head_in_a_row() -> None:
    x = torch.arange(12).view(1, 2, 3, 2)
    repeated = face.repeat_kv(x, 2)
    assert repeated.shape == (1, 2, 6, 2)
    assert torch.equal(repeated[:, :, [0, 1]], x[:, :, [0, 0]])
    assert torch.equal(repeated[:, :, [4, 5]], x[:, :, [2, 2]])
    assert torch.equal(face.repeat_kv(x, 1), x)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return tiny_config(n_kv_heads=2, vocab_size=400)


@pytest.fixture(scope="module")
def weights(config: ModelConfig) -> Mapping[str, Tensor]:
    return random_model(config)


@pytest.fixture(scope="module")
def model(config: ModelConfig, weights: Mapping[str, Tensor]) -> Transformer:
    transformer = Transformer(dataclasses.replace(args_of(config), vocab_size=-1))
    keys = transformer.load_state_dict({**weights, "rope.freqs": torch.ones(2)}, strict=False)
    assert keys == ([], [])
    return transformer


def test_forward_gives_the_logits_of_every_position(
    config: ModelConfig, weights: Mapping[str, Tensor], model: Transformer
) -> None:
    rows = [PROMPT, PROMPT[::-1]]
    logits = model.forward(torch.tensor(rows), 0)
    assert logits.dtype == torch.float32 and logits.shape == (2, len(PROMPT), 400)
    for row, row_logits in zip(rows, logits, strict=True):
        assert torch.allclose(row_logits, oracle.logits(config, weights, row), atol=1e-4)


def test_forward_continues_from_start_pos(
    config: ModelConfig, weights: Mapping[str, Tensor], model: Transformer
) -> None:
    model(torch.tensor([PROMPT[:4]]), 0)
    model(torch.tensor([PROMPT[4:8]]), 4)
    last = model(torch.tensor([PROMPT[8:]]), 8)
    assert torch.allclose(last[0, -1], oracle.logits(config, weights, PROMPT)[-1], atol=1e-4)


def test_attributes_are_metas(config: ModelConfig, model: Transformer) -> None:
    assert (model.vocab_size, model.n_layers, model.params.vocab_size) == (400, 3, 400)
    assert list(model.layers) == ["0", "1", "2"]
    assert isinstance(model.layers["0"], face.TransformerBlock)
    assert isinstance(model.norm, face.RMSNorm)
    assert model.freqs_cis.shape == (64, config.head_dim // 2)
    assert model.freqs_cis.dtype == torch.complex64
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in model.engine.stage.parameters()
    )


def test_llama_can_be_made_of_model_and_tokenizer(
    config: ModelConfig, weights: Mapping[str, Tensor], model: Transformer, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    (row,), logprobs = Llama(model, tokenizer).generate([PROMPT], max_gen_len=6, temperature=0)
    expected = oracle.greedy(config, weights, PROMPT, 6)
    assert tokenizer.eos_id not in expected
    assert (row, logprobs) == (expected, None)
    tokenizer.stop_tokens = {expected[3]}
    n_before = model.engine.runner.stats.n_tokens
    ((cut,), _) = Llama(model, tokenizer).generate([PROMPT], max_gen_len=6, temperature=0)
    assert cut == expected[: expected.index(expected[3])]
    assert model.engine.runner.stats.n_tokens - n_before == len(PROMPT) + len(cut)


def test_a_model_without_weights_says_how_to_get_them(config: ModelConfig) -> None:
    with pytest.raises(UsageError, match="no weights yet; call load_state_dict"):
        Transformer(args_of(config)).forward(torch.tensor([[1]]), 0)


def test_state_dicts_that_do_not_fit(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    model = Transformer(args_of(config))
    with pytest.raises(UsageError, match=r"names of no Llama tensor: \['extra'\]"):
        model.load_state_dict({**weights, "extra": torch.ones(1)})
    with pytest.raises(CheckpointError, match="lacks 1 of the"):
        model.load_state_dict(
            {k: v for k, v in weights.items() if k != "norm.weight"}, strict=False
        )
    with pytest.raises(CheckpointError, match=r"lacks tok_embeddings\.weight"):
        model.load_state_dict({})
    with pytest.raises(UsageError, match="one shard of several"):
        shard = {name: w.chunk(2)[0] for name, w in weights.items()}
        model.load_state_dict(shard)
    assert model.load_state_dict({**weights, "extra": torch.ones(1)}, strict=False) == (
        [],
        ["extra"],
    )
