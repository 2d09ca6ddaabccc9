"""What is planned for quantised weights is what they take, and `llama plan` says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.cli import main
from llama.config import EngineConfig, ModelConfig
from llama.engine.footprint import Workload, empty_stage, footprint
from llama.errors import UnknownNameError
from llama.models.decoder import stages
from llama.parallel.layout import ParallelLayout
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.gpt2_weights import tiny_gpt2_config

# 2 or 3 ranks cut 72 and 200 columns inside of groups, and ranks of one width hold different groups
LLAMA = tiny_config(
    dim=72, n_heads=6, n_kv_heads=6, head_dim=12, ffn_dim=200, vocab_size=62, attention_bias=True
)
GPT2 = tiny_gpt2_config(dim=72, n_heads=6, n_kv_heads=6, head_dim=12, ffn_dim=200, max_positions=64)


@pytest.mark.parametrize("wish", ["int8:32", "int8_dynamic", "int4:32", "fp8"])
@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (3, 1), (2, 2), (6, 1)])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_planned_bytes_are_those_of_the_real_modules(
    model: ModelConfig, layout: tuple[int, int], wish: str
) -> None:
    config = EngineConfig(max_seq_len=48, max_batch_size=2, quantize=wish)
    work, cut = Workload(model, config, torch.bfloat16), ParallelLayout(*layout)
    for planned in footprint(work, cut).ranks:
        own = stages(model, pp_size=layout[1])[planned.pp_rank]
        stage = empty_stage(work, cut, planned.rank, own)
        stage.materialize(torch.device("cpu"))
        held = [*stage.parameters(), *stage.buffers()]
        assert planned.weight_bytes == sum(tensor.nbytes for tensor in held)


def test_a_tied_head_has_values_of_its_own() -> None:
    config = EngineConfig(max_seq_len=48, quantize="int8:32")
    tied, free = (
        footprint(
            Workload(replace(GPT2, tied_embeddings=is_tied), config, torch.float32),
            ParallelLayout(),
        )
        for is_tied in (True, False)
    )
    assert tied.ranks[0].weight_bytes == free.ranks[0].weight_bytes


def test_an_unknown_name_is_no_layout_that_is_refused() -> None:
    config = EngineConfig(max_seq_len=48, quantize="int3")
    with pytest.raises(UnknownNameError, match="unknown quantisation 'int3'; known"):
        footprint(Workload(LLAMA, config, torch.float32), ParallelLayout())


def test_the_plan_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_meta(tmp_path, LLAMA, random_model(LLAMA))
    found = {}
    for words in ([], ["--quantize", "int8:32"], ["--quantize", "int4:32"]):
        assert main(["plan", str(tmp_path), "--tp", "2", *words, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        found[facts["quantize"]] = facts["ranks"][0]["weight_bytes"]
    assert found["int4:32"] < found["int8:32"] < found[None]
    assert main(["plan", str(tmp_path), "--quantize", "int8:32"]) == 0
    assert "float32 with int8:32 weights on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("int3", "unknown quantisation 'int3'; known: fp8, int4, int8, int8_dynamic"),
        ("int8:7", "group size must be one of 32, 64, 128, got 7"),
        ("int8:128", "group size 128 exceeds the 72 input features of w1.weight; use 64"),
    ],
)
def test_the_plan_command_says_what_is_wrong(
    wish: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_meta(tmp_path, LLAMA, random_model(LLAMA))
    assert main(["plan", str(tmp_path), "--quantize", wish]) == 64
    assert message in capsys.readouterr().err
