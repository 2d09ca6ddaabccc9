"""Quantised while loading: every rank of every layout has the values and scales of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.checkpoint.loading import fetch
from llama.checkpoint.loading.loader import load
from llama.config import ModelConfig
from llama.errors import UsageError
from llama.models.decoder import tensor_names
from llama.parallel.context import ParallelContext
from llama.quant.choose import linear_method
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.quantised import check_layer, in_memory, linears
from tests.helpers.ranks import run_layout
from tests.helpers.stage_weights import digest, expected, stage_at

# 72 and 136 are no multiples of 32; 3 ranks cut 72 columns at 24 and 48
LLAMA = tiny_config(
    dim=72, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=12, ffn_dim=136, vocab_size=62
)
BIASED = tiny_config(
    dim=72, n_layers=2, n_heads=6, n_kv_heads=6, head_dim=12, ffn_dim=136, attention_bias=True
)
GPT2 = tiny_gpt2_config(dim=72, n_layers=2, n_heads=6, n_kv_heads=6, head_dim=12, ffn_dim=136)
LAYOUTS = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (4, 1)]
Write = Callable[[Path], dict[str, Tensor]]


def meta(folder: Path) -> dict[str, Tensor]:
    """Two files, which cut wo at column 36 and w2 at 68: inside of groups."""
    weights = random_model(LLAMA)
    write_meta(folder, LLAMA, weights, n_files=2, embedding_split=1)
    return weights


def meta_bf16(folder: Path) -> dict[str, Tensor]:
    weights = random_model(BIASED)
    write_meta(folder, BIASED, weights, dtype=torch.bfloat16)
    return {name: weight.bfloat16() for name, weight in weights.items()}


def hf(folder: Path) -> dict[str, Tensor]:
    weights = random_model(LLAMA)
    write_hf(folder, LLAMA, weights, n_shards=2, is_half=True)
    return weights


def gpt2(folder: Path) -> dict[str, Tensor]:
    """Linears lie transposed in the file, and the head is the embedding."""
    weights = random_gpt2(GPT2)
    write_hf(folder, GPT2, weights)
    return weights


def check_stage(stage: Any, weights: dict[str, Tensor], *, bits: int, group_size: int) -> set[str]:
    seen = set()
    for owner, layer in linears(stage):
        seen |= check_layer(owner, layer, weights, bits=bits, group_size=group_size)
    return seen


@pytest.mark.parametrize("tile_bytes", [fetch.TILE_BYTES, 700], ids=["whole", "in tiny tiles"])
@pytest.mark.parametrize(("wish", "bits"), [("int8:32", 8), ("int4:64", 4)])
@pytest.mark.parametrize("write", [meta, meta_bf16, hf, gpt2])
def test_every_rank_of_every_layout_has_the_same_numbers(
    write: Write,
    wish: str,
    bits: int,
    tile_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "TILE_BYTES", tile_bytes)
    weights = write(tmp_path)
    reader = open_checkpoint(tmp_path)
    all_names = tensor_names(reader.config)
    for tp, pp in LAYOUTS:
        seen = set()
        for rank in range(tp * pp):
            stage = stage_at(reader.config, tp, pp, rank, method=linear_method(wish))
            report = load(stage, reader, device="cpu", all_names=all_names)
            seen |= check_stage(stage, weights, bits=bits, group_size=int(wish[5:]))
            assert report.bytes_held == sum(p.nbytes for p in stage.parameters())
        assert seen == {name for name in all_names if linear_weight(name)}
    reader.close()


def linear_weight(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name and "embeddings" not in name


def test_what_is_no_linear_weight_stays_as_it_is(tmp_path: Path) -> None:
    weights = gpt2(tmp_path)
    reader = open_checkpoint(tmp_path)
    stage = stage_at(reader.config, 2, 1, 1, method=linear_method("int8:32"))
    load(stage, reader, device="cpu", all_names=tensor_names(reader.config))
    reader.close()
    plain = {path: p for path, p in stage.named_parameters() if p.dtype == torch.float32}
    assert {path.rpartition(".")[2] for path in plain} == {"weight", "bias"}
    for path in ("tok_embeddings.weight", "pos_embeddings.weight", "norm.bias"):
        assert digest(plain[path]) == digest(expected(plain[path], weights, [path]))
    bias = plain["layers.1.attention.wqkv.bias"]
    names = [f"layers.1.attention.{name}.bias" for name in ("wq", "wk", "wv")]
    assert digest(bias) == digest(expected(bias, weights, names))


def load_together(context: ParallelContext, folder: str) -> int:
    """Ranks that read a common tensor once and hand it on; the bytes that were handed to this."""
    reader = open_checkpoint(folder)
    method = linear_method("int4:32")
    stage = stage_at(reader.config, context.layout.tp_size, 1, context.rank, method=method)
    report = load(
        stage,
        reader,
        device="cpu",
        all_names=tensor_names(reader.config),
        local=context.local,
        rank=context.rank,
    )
    reader.close()
    check_stage(stage, random_gpt2(GPT2), bits=4, group_size=32)
    return report.bytes_handed


def test_ranks_still_hand_on_what_they_have_read(tmp_path: Path) -> None:
    gpt2(tmp_path)
    first, *others = run_layout(load_together, str(tmp_path), tp=3)
    assert first == 0 and all(others), "so small a model is read by the first rank alone"


def test_a_rank_never_holds_its_weights_as_they_were_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TILE_BYTES", 2**20)
    config = tiny_config(
        dim=1024, n_layers=4, n_heads=8, n_kv_heads=8, head_dim=128, ffn_dim=2816, vocab_size=64
    )
    write_meta(tmp_path, config, random_model(config), n_files=2)
    dense_bytes = 4 * 4 * (4 * 1024 * 1024 + 3 * 1024 * 2816)
    reader = open_checkpoint(tmp_path)
    stage = stage_at(config, 1, 1, 0, method=linear_method("int8:32"))
    report = load(stage, reader, device="cpu", all_names=tensor_names(config))
    reader.close()
    assert report.bytes_held < 0.28 * dense_bytes
    assert report.peak_bytes < 0.45 * dense_bytes, "beside the weights only tiles may be held"


@pytest.mark.parametrize(
    ("wish", "config", "message"),
    [
        ("int8:128", LLAMA, "group size 128 exceeds the 72 input features of w1.weight; use 64"),
        ("int8:64", tiny_config(), "exceeds the 32 input features of w1.weight; use 32"),
        ("int4", tiny_config(dim=24), "24 input features of w1.weight; it is too small"),
    ],
)
def test_groups_that_are_wider_than_a_layer_are_refused(
    wish: str, config: ModelConfig, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        stage_at(config, 1, 1, 0, method=linear_method(wish))


def test_weights_that_are_no_numbers_stay_so() -> None:
    weights = random_model(LLAMA)
    weights["layers.0.attention.wo.weight"][3, 40] = torch.nan
    reader = in_memory(LLAMA, weights)
    stage = stage_at(LLAMA, 1, 1, 0, method=linear_method("int8:32"))
    load(stage, reader, device="cpu", all_names=tensor_names(LLAMA))
    scales = stage.layers["0"].attention.wo.scales
    assert scales.isnan().nonzero().tolist() == [[3, 1]]
