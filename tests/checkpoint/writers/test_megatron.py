from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.config import ModelConfig
from tests.helpers.checkpoints import Weights, random_model, tiny_config
from tests.helpers.conversions import converted
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import Names, write_megatron

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]
GPT2 = tiny_gpt2_config(n_layers=4)
LLAMA = tiny_config(n_layers=4, n_kv_heads=4, rope_style="half", rope_theta=5e5, max_positions=128)


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize(
    ("config", "weights", "names"),
    [
        (GPT2, random_gpt2(GPT2), "encoder"),
        (LLAMA, random_model(LLAMA), "core"),
    ],
)
def test_every_rank_has_what_megatron_would_have_saved(
    tmp_path: Path, config: ModelConfig, weights: Weights, names: Names, tp: int, pp: int
) -> None:
    write_hf(tmp_path / "a", config, weights, is_half=True)
    ours = converted(tmp_path / "a", "b", "megatron", tp=tp, pp=pp)
    theirs = write_megatron(
        tmp_path / "c", config, weights, names=names, tp=tp, pp=pp, iteration=None,
        with_args=True, vocab_divisible_by=128,
    )  # fmt: skip
    ranks = sorted(path.relative_to(theirs) for path in theirs.rglob("model_optim_rng.pt"))
    assert sorted(path.relative_to(ours) for path in ours.rglob("*.pt")) == ranks
    assert len(ranks) == tp * pp
    for rank in ranks:
        found = torch.load(ours / rank, weights_only=False)
        expected = torch.load(theirs / rank, weights_only=False)
        assert_same_tree(found["model"], expected["model"], str(rank))
        assert found["checkpoint_version"] == 3.0
        assert isinstance(found["args"], argparse.Namespace)
        ours_said, theirs_said = vars(found["args"]), vars(expected["args"])
        both = ours_said.keys() & theirs_said.keys()
        assert len(both) >= 20
        assert {name: ours_said[name] for name in both} == {
            name: theirs_said[name] for name in both
        }
    assert (ours / "latest_checkpointed_iteration.txt").read_text() == "release"


def assert_same_tree(found: Any, expected: Any, where: str) -> None:
    """The same names and bits; the empty `_extra_state` of FP8 training is left out."""
    if isinstance(expected, dict):
        expected = {name: value for name, value in expected.items() if value is not None}
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same_tree(found[name], value, f"{where} {name}")
    else:
        assert torch.equal(found, expected), where
