"""Content of Megatron's files that is foreign, incomplete or of several checkpoints, named."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.megatron_files import write_megatron
from tests.helpers.megatron_models import (
    GPT2,
    GPT2_WEIGHTS,
    LLAMA,
    LLAMA_WEIGHTS,
    Change,
    edit,
    message_of,
)


def _stack(content: dict[str, Any]) -> dict[str, Any]:
    stack: dict[str, Any] = content["model"]["language_model"]["encoder"]
    return stack


CONTENT_FAULTS: dict[str, tuple[Change, str]] = {
    "no model": (lambda c: c.pop("model"), "has no model, so it is not Megatron's; it holds args"),
    "model is a list": (lambda c: c.update(model=[1]), "the model is a list"),
    "no text": (lambda c: c["model"].update({3: {}}), "the model has a key that is no text"),
    "version": (lambda c: c.update(checkpoint_version=4.0), "checkpoint_version is 4.0; known"),
    "version text": (lambda c: c.update(checkpoint_version="3"), "checkpoint_version is '3'"),
    "scalar": (
        lambda c: _stack(c).update(extra=torch.tensor(1.0)),
        "language_model.encoder.extra is a FileTensor, not a matrix",
    ),
    "number": (lambda c: _stack(c).update(extra=1), "language_model.encoder.extra is a int"),
    "in itself": (
        lambda c: c["model"].update(again=c["model"]),
        "is nested too deeply",
    ),
    "pooler": (
        lambda c: c["model"]["language_model"].update(pooler={"dense.weight": torch.ones(2)}),
        "holds language_model.pooler.dense.weight, which neither a GPT-2 nor a Llama",
    ),
    "experts": (
        lambda c: _stack(c).update({"layers.0.mlp.experts.0.weight": torch.ones(2)}),
        "holds language_model.encoder.layers.0.mlp.experts.0.weight, which neither",
    ),
    "twice": (
        lambda c: _stack(c).update({"layers.0.input_norm.weight": torch.ones(32)}),
        "layers.0.input_norm.weight (attention_norm.weight) for the second time",
    ),
    "gap": (
        lambda c: [_stack(c).pop(name) for name in list(_stack(c)) if "layers.1." in name],
        "lacks layer 1 of the 4 that it counts",
    ),
    "no layers": (
        lambda c: [_stack(c).pop(name) for name in list(_stack(c)) if "layers." in name],
        "the checkpoint holds no layers",
    ),
    "no embedding": (
        lambda c: c["model"]["language_model"].pop("embedding"),
        "no file holds a matrix of word embeddings",
    ),
    "no bias": (
        lambda c: _stack(c).pop("layers.2.mlp.dense_4h_to_h.bias"),
        "lacks 1 of the 69 tensors of its model: layers.2.feed_forward.w2.bias",
    ),
    "shape": (
        lambda c: _stack(c).update({"layers.2.mlp.dense_4h_to_h.bias": torch.ones(31)}),
        "rank_00/model_optim_rng.pt: layers.2.feed_forward.w2.bias has shape (31,), but",
    ),
    "vector": (
        lambda c: _stack(c).update({"layers.2.mlp.dense_4h_to_h.weight": torch.ones(32)}),
        "feed_forward.w2.weight has shape (32,)",
    ),
    "integers": (
        lambda c: _stack(c).update({"final_layernorm.bias": torch.ones(32, dtype=torch.int8)}),
        "norm.bias is stored as int8",
    ),
    "args": (lambda c: c.update(args=Namespace(num_layers=[])), "num_layers must be an integer"),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_content_at_fault(fault: str, tmp_path: Path) -> None:
    change, expected = CONTENT_FAULTS[fault]
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    edit(tmp_path, change)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


def test_ranks_that_do_not_belong_together(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2)
    name = "layers.1.mlp.dense_h_to_4h.bias"
    edit(tmp_path, lambda c: _stack(c).update({name: torch.ones(3)}), rank="mp_rank_01")
    message = message_of(tmp_path)
    assert f"{name} has shape (64,) in" in message
    edit(tmp_path, lambda c: _stack(c).pop(name), rank="mp_rank_01")
    assert f"only one of them has language_model.encoder.{name}" in message_of(tmp_path)


def test_a_rank_of_another_iteration(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2)
    path = edit(tmp_path, lambda content: content.update(iteration=7), rank="mp_rank_01")
    message = message_of(tmp_path)
    assert f"has iteration 1000, but {path} 7; they come from different checkpoints" in message


def test_a_gate_without_its_other_half(tmp_path: Path) -> None:
    write_megatron(tmp_path, LLAMA, LLAMA_WEIGHTS, names="core")
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    edit(tmp_path, lambda content: content["model"].update({name: torch.ones(95, 32)}))
    assert "has shape (95, 32), which has no two halves" in message_of(tmp_path)
