"""What a stage builds on every layout. What it computes is in test_layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.config import ModelConfig
from llama.errors import UnknownNameError, UsageError
from llama.layers.parameter import pieces
from llama.models.decoder import DecoderStage, Stage, stage_of, tensor_names
from llama.parallel.comm import SingleCommunicator
from tests.helpers.checkpoints import shapes, tiny_config
from tests.helpers.stages import Place

CPU = torch.device("cpu")
UNEVEN = tiny_config(n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=200, vocab_size=101)
TIED = tiny_config(vocab_size=101, tied_embeddings=True)
BIASED = tiny_config(n_heads=6, n_kv_heads=3, ffn_dim=50, attention_bias=True, mlp_bias=True)


def build(config: ModelConfig, stage: Stage | None = None, **options: Any) -> DecoderStage:
    return DecoderStage(
        config,
        stage or stage_of(config, pp_size=1, pp_rank=0),
        **{"tp": SingleCommunicator(), "dtype": torch.float32, "max_positions": 64, **options},
    )


@pytest.mark.parametrize("config", [tiny_config(), BIASED, TIED])
def test_tensor_names_are_those_of_a_whole_model(config: ModelConfig) -> None:
    assert tensor_names(config) == shapes(config).keys()


@pytest.mark.parametrize("pp_size", [1, 2, 3])
def test_stages_together_need_every_tensor_once(pp_size: int) -> None:
    stages = [
        build(UNEVEN, stage_of(UNEVEN, pp_size=pp_size, pp_rank=rank)) for rank in range(pp_size)
    ]
    names = [name for stage in stages for _, _, name in pieces(stage)]
    assert sorted(names) == sorted(tensor_names(UNEVEN))


@pytest.mark.parametrize("config", [UNEVEN, BIASED])
@pytest.mark.parametrize("tp_size", [2, 3, 4, 5, 6])
def test_ranks_together_hold_every_slice(config: ModelConfig, tp_size: int) -> None:
    held: dict[str, list[int]] = {}
    for rank in range(tp_size):
        for _, piece, name in pieces(build(config, tp=Place(rank, tp_size))):
            assert piece.full_shape == shapes(config)[name]
            counts = held.setdefault(name, [0] * piece.full_shape[piece.dim or 0])
            cut = range(len(counts)) if piece.dim is None else range(piece.start, piece.stop)
            for index in cut:
                counts[index] += 1
    assert held.keys() == tensor_names(config)
    replicated = ("norm.weight", "wo.bias", "w2.bias")
    for name, counts in held.items():
        if name.endswith(replicated):
            assert set(counts) == {tp_size}, name
        elif tp_size > config.n_kv_heads and (".wk." in name or ".wv." in name):
            assert min(counts) >= 1, name
        else:
            assert set(counts) == {1}, name


def test_a_middle_stage_has_layers_alone() -> None:
    stage = build(UNEVEN, Stage(range(1, 2), is_first=False, is_last=False))
    assert (stage.tok_embeddings, stage.norm, stage.output) == (None, None, None)
    assert list(stage.layers) == ["1"]
    assert {name for _, _, name in pieces(stage)} == {
        name for name in tensor_names(UNEVEN) if name.startswith("layers.1.")
    }


@pytest.mark.parametrize(
    ("heads", "sizes"), [(0.9, [2, 2, 2, 2]), (3.5, [2, 2, 2, 2]), (7, [2, 2, 3, 1])]
)
def test_stages_are_balanced_by_time(heads: float, sizes: list[int]) -> None:
    """The embedding costs nothing, a head a quarter of its size, here in layers."""
    vocab_size = int(heads * tiny_config().layer_parameters / tiny_config().dim)
    config = tiny_config(n_layers=8, vocab_size=vocab_size)
    stages = [stage_of(config, pp_size=4, pp_rank=rank) for rank in range(4)]
    assert [len(stage.layers) for stage in stages] == sizes
    assert [stage.is_first for stage in stages] == [True, False, False, False]
    assert [stage.is_last for stage in stages] == [False, False, False, True]


def test_a_stage_shows_where_it_is() -> None:
    shown = repr(build(UNEVEN, tp=Place(1, 4)))
    assert "in_features=32, out_features=80, bias=False, tp_rank=1/4, local=(24, 32)" in shown
    assert "num_embeddings=101, embedding_dim=32, tp_rank=1/4, local=(26, 32)" in shown


def test_nothing_takes_memory_before_materialize() -> None:
    stage = build(UNEVEN)
    assert all(parameter.is_meta for parameter in stage.parameters())
    stage.materialize(CPU)
    assert not any(parameter.is_meta for parameter in stage.parameters())
    assert stage.rotary is not None and stage.rotary.cos.shape == (64, 4)


@pytest.mark.parametrize(
    ("changes", "tp_size", "message"),
    [
        ({}, 9, "tp_size 9 exceeds n_heads 8; use at most 8"),
        ({"ffn_dim": 3}, 4, "tp_size 4 exceeds ffn_dim 3; use at most 3"),
    ],
)
def test_too_many_ranks_are_refused(changes: dict[str, int], tp_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(tiny_config(**changes), tp=Place(0, tp_size))


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(UsageError, match="pp_size 4 exceeds n_layers 3"):
        stage_of(tiny_config(), pp_size=4, pp_rank=0)


def test_a_tied_head_is_the_embedding_where_both_are() -> None:
    stage = build(TIED, tp=Place(2, 3))
    stage.materialize(CPU)
    assert stage.tok_embeddings is not None and stage.output is not None
    assert stage.output.weight is stage.tok_embeddings.weight
    names = [name for name, _ in stage.named_parameters()]
    assert "tok_embeddings.weight" in names and "output.weight" not in names
    assert [name for _, _, name in pieces(stage)].count("tok_embeddings.weight") == 1


def test_a_tied_head_on_another_stage_has_its_own_copy() -> None:
    first, last = (build(TIED, stage_of(TIED, pp_size=2, pp_rank=rank)) for rank in range(2))
    assert "tok_embeddings.weight" in {name for _, _, name in pieces(first)}
    assert "output.weight" in {name for _, _, name in pieces(last)}


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown architecture 'lama'; known: gpt2, llama"):
        build(tiny_config(architecture="lama"))
    with pytest.raises(UnknownNameError, match="naive, native, paged, sdpa"):
        build(tiny_config(), attention="flush")
