"""Which model Megatron's files are: told by arguments, shapes, a file beside them; or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.canonical import EMBEDDING, HEAD, POSITIONS
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.formats.megatron_args import Arguments
from llama.checkpoint.formats.megatron_config import model_config
from llama.checkpoint.formats.megatron_stages import MegatronModel
from llama.config import RopeScaling
from tests.helpers.gpt2_weights import gpt2_shapes, random_gpt2, tiny_gpt2_config
from tests.helpers.megatron_files import write_megatron
from tests.helpers.megatron_models import (
    GPT2,
    GPT2_WEIGHTS,
    LLAMA,
    LLAMA_WEIGHTS,
    assert_reads,
    message_of,
)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_padding_of_the_vocabulary_is_left_out(tp: int, tmp_path: Path) -> None:
    config = replace(GPT2, vocab_size=61)
    weights = random_gpt2(config)
    write_megatron(tmp_path, config, weights, tp=tp, vocab_divisible_by=16)
    reader = open_checkpoint(tmp_path)
    assert reader.notes == (
        f"3 rows of padding in the vocabulary, 61 tokens by the args in "
        f"{tmp_path / 'iter_0001000/mp_rank_00/model_optim_rng.pt'}",
    )
    assert_reads(reader, config, weights)


def test_padding_that_fills_whole_ranks_is_left_out(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=4, vocab_divisible_by=128)
    reader = open_checkpoint(tmp_path)
    assert "448 rows of padding" in reader.notes[0]
    assert reader.tensors[EMBEDDING].extents() == reader.tensors[HEAD].extents()
    assert {path.parent.name for path, _, _ in reader.tensors[EMBEDDING].extents()} == {
        "mp_rank_00"
    }


@pytest.mark.parametrize("name", ["vocab.json", "gpt2-vocab.json"])
def test_a_vocabulary_file_tells_the_padding(name: str, tmp_path: Path) -> None:
    extra = {"vocab_size": None}
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, args_extra=extra)
    (tmp_path / name).write_text(json.dumps({f"token {n}": n for n in range(64)}))
    reader = open_checkpoint(tmp_path)
    assert f"64 tokens by {tmp_path / name}" in reader.notes[0]
    assert_reads(reader, GPT2, GPT2_WEIGHTS)


def test_padding_that_nothing_tells_stays(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, args_extra={"vocab_size": None})
    reader = open_checkpoint(tmp_path)
    assert reader.config.vocab_size == 128
    assert "megatron_args.json can tell vocab_size" in reader.notes[0]
    (tmp_path / "megatron_args.json").write_text('{"vocab_size": 64}')
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


def test_a_published_size_needs_no_arguments(tmp_path: Path) -> None:
    """Its layers are thin here; that the four sizes have their heads is shown below."""
    config = tiny_gpt2_config(
        dim=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, ffn_dim=2, max_positions=4,
        vocab_size=8,
    )  # fmt: skip
    weights = {name: torch.zeros(shape) for name, shape in gpt2_shapes(config).items()}
    write_megatron(
        tmp_path, config, weights, version=None, names="transformer", with_args=False,
        iteration=None, vocab_divisible_by=8, dtype=torch.float16,
    )  # fmt: skip
    assert open_checkpoint(tmp_path).config == config


@pytest.mark.parametrize(
    ("dim", "n_layers", "n_heads"), [(768, 12, 12), (1024, 24, 16), (1280, 36, 20), (1600, 48, 25)]
)
def test_heads_of_the_published_sizes(
    dim: int, n_layers: int, n_heads: int, tmp_path: Path
) -> None:
    path = tmp_path / "sparse.pt"
    with path.open("wb") as file:
        file.truncate(2**30)
    data = DataFile(path)

    def shards(*shape: int) -> list[FileTensor]:
        return [FileTensor.of(data, 0, dtype=torch.float16, shape=shape)]

    model = MegatronModel(
        top={EMBEDDING: shards(50304, dim), POSITIONS: shards(1024, dim)},
        layers=[{"feed_forward.w13.weight": shards(4 * dim, dim)}] * n_layers,
    )
    nothing = Arguments("nothing", {})
    config = model_config(model, nothing, vocab_size=50257, files="here")
    assert (config.n_heads, config.head_dim, config.ffn_dim) == (n_heads, 64, 4 * dim)
    assert (config.activation, config.max_positions) == ("gelu_tanh", 1024)


def test_the_release_unpacked_by_hand(tmp_path: Path) -> None:
    """One bare file, no tracker, no arguments: heads come from megatron_args.json."""
    tmp_path.joinpath("megatron_args.json").write_text('{"num_attention_heads": 4}')
    write_megatron(
        tmp_path, GPT2, GPT2_WEIGHTS, version=None, names="transformer", with_args=False,
        bare=True, file_name="gpt2-345m.pt", vocab_divisible_by=64,
    )  # fmt: skip
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gpt2_is_known_by_what_its_vocabulary_pads_to(tp: int, tmp_path: Path) -> None:
    config = replace(GPT2, vocab_size=50257, n_layers=1)
    weights = random_gpt2(config)
    (tmp_path / "megatron_args.json").write_text('{"num_attention_heads": 4}')
    write_megatron(
        tmp_path, config, weights, version=None, names="transformer", with_args=False, tp=tp
    )
    reader = open_checkpoint(tmp_path)
    assert "50257 tokens by GPT-2's vocabulary" in reader.notes[0]
    assert_reads(reader, config, weights)


def test_as_many_rows_of_another_model_stay(tmp_path: Path) -> None:
    """Its arguments were stored and do not say how many are tokens, so it need not be GPT-2's."""
    config = replace(GPT2, vocab_size=50257, n_layers=1)
    write_megatron(tmp_path, config, random_gpt2(config), args_extra={"vocab_size": None})
    assert open_checkpoint(tmp_path).config.vocab_size == 50304


def test_a_llama_without_arguments_is_described_beside_it(tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core", with_args=False, tp=2, pp=2)
    described = {
        "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True,
        "num_attention_heads": 8, "num_query_groups": 4, "vocab_size": 64,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (tmp_path / "iter_0001000/megatron_args.json").write_text(json.dumps(described))
    assert_reads(open_checkpoint(tmp_path), LLAMA, LLAMA_WEIGHTS)


ACTIVATIONS = [
    ({"bias_gelu_fusion": True}, "gelu_tanh"),
    ({"bias_gelu_fusion": False}, "gelu"),
    ({"bias_gelu_fusion": False, "openai_gelu": True}, "gelu_tanh"),
    ({"bias_gelu_fusion": None}, "gelu_tanh"),
]


@pytest.mark.parametrize(("extra", "activation"), ACTIVATIONS)
def test_activation(extra: dict[str, Any], activation: str, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, args_extra=extra)
    assert open_checkpoint(tmp_path).config.activation == activation


SCALINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rotary_base": 500000}, {"rope_theta": 5e5}),
    ({"rotary_interleaved": True}, {"rope_style": "interleaved"}),
    ({"norm_epsilon": None, "layernorm_epsilon": 1e-6}, {"norm_eps": 1e-6}),
    (
        {"use_rope_scaling": True, "rope_scaling_factor": 32.0},
        {"rope_scaling": RopeScaling(factor=32.0)},
    ),
    (
        {"rotary_seq_len_interpolation_factor": 4},
        {"rope_scaling": RopeScaling(factor=4.0, kind="linear")},
    ),
    ({"rotary_seq_len_interpolation_factor": 1}, {}),
    ({"max_position_embeddings": 4096}, {"max_positions": 4096}),
    (
        {"position_embedding_type": "learned_absolute", "use_rotary_position_embeddings": True},
        {},
    ),
]


@pytest.mark.parametrize(("extra", "changes"), SCALINGS)
def test_arguments_of_llama(extra: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core", args_extra=extra)
    assert open_checkpoint(tmp_path).config == replace(LLAMA, **changes)


def test_unknown_heads_say_what_to_add(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, with_args=False)
    message = message_of(tmp_path)
    assert "does not say how many heads its 4 layers of width 32 have" in message
    assert 'add a file megatron_args.json with {"num_attention_heads": ...}' in message


def test_unknown_positions_say_what_to_add(tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core", with_args=False)
    message = message_of(tmp_path)
    assert "has no position embeddings and does not say which it uses" in message
    assert '"position_embedding_type": "rope"' in message
