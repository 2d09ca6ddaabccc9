"""What a user may ask for, what is refused and how, and fp8 where no GPU is needed to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint.loading.loader import load
from llama.config import EngineConfig
from llama.engine.build import load_stage
from llama.errors import HardwareError, LlamaError, UnknownNameError, UsageError
from llama.llm import LLM
from llama.models.decoder import tensor_names
from llama.parallel.context import single
from llama.parallel.shard import replicated, sliced, stacked, vocab_shard
from llama.quant import QUANT
from llama.quant.base import DENSE
from llama.quant.choose import linear_method
from llama.quant.fp8 import RowwiseFp8, quantize_rows
from llama.quant.integers import GroupedIntegers
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.llms import build, write_model
from tests.helpers.quantised import in_memory, linears
from tests.helpers.stage_weights import stage_at

CONFIG = tiny_config(dim=72, n_heads=6, n_kv_heads=2, head_dim=12, ffn_dim=136, vocab_size=62)


@pytest.mark.parametrize(
    ("wish", "method"),
    [
        (None, DENSE),
        ("int8", GroupedIntegers(bits=8, group_size=64)),
        ("int8:128", GroupedIntegers(bits=8, group_size=128)),
        ("int8_dynamic:32", GroupedIntegers(bits=8, group_size=32, dynamic=True)),
        ("int4", GroupedIntegers(bits=4, group_size=32)),
        ("fp8", RowwiseFp8()),
    ],
)
def test_a_name_and_a_group_size(wish: str | None, method: object) -> None:
    assert linear_method(wish) == method


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ("int9", UnknownNameError, "unknown quantisation 'int9'; known: fp8, int4, int8, int8_dyn"),
        ("", UnknownNameError, "unknown quantisation ''"),
        ("INT8", UnknownNameError, "unknown quantisation"),
        ("int8:0", UsageError, "group size must be one of 32, 64, 128, got 0"),
        ("int4:33", UsageError, "got 33"),
        ("int8:96", UsageError, "got 96"),
        ("int8:99999999999999999999", UsageError, "got 9999"),
        ("int8:", UsageError, "no number after the colon.*int8:64"),
        ("int8:-64", UsageError, "no number after the colon"),
        ("int8:6²", UsageError, "no number after the colon"),
        ("fp8:32", UsageError, "a scale for each row and no groups, got group size 32"),
        (8, UsageError, "quantize must be a name such as int8 or int8:64, got 8"),
        (True, UsageError, "got True"),
    ],
)
def test_what_is_refused(wish: Any, error: type[LlamaError], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_method(wish)


@pytest.mark.parametrize("name", QUANT)
def test_every_name_in_the_registry_makes_a_method(name: str) -> None:
    method = linear_method(name)
    stored = method.store(sliced("w.weight", (64, 128), 0, range(8, 40)), dtype=torch.bfloat16)
    assert stored.shard.pieces[0].shape == (32, 128)
    assert stored.values.shape[0] == 32 and stored.scales is not None


@pytest.mark.parametrize(
    ("part", "margins", "columns"),
    [
        (range(0, 32), (0, 0), range(0, 32)),
        (range(24, 48), (24, 16), range(0, 64)),
        (range(40, 50), (8, 14), range(32, 64)),
        (range(64, 72), (0, 24), range(64, 72)),
    ],
)
def test_a_slice_is_widened_to_whole_groups(
    part: range, margins: tuple[int, int], columns: range
) -> None:
    stored = linear_method("int8:32").store(
        sliced("w.weight", (5, 72), 1, part), dtype=torch.float32
    )
    (piece,) = stored.shard.pieces
    assert (piece.start, piece.stop) == (columns.start, columns.stop)
    assert stored.margins == margins
    assert stored.values.shape == (5, len(part) + sum(margins))


def test_rows_and_vocabularies_keep_their_places() -> None:
    method = linear_method("int4:32")
    rows = stacked([("q", (9, 64), range(3, 6)), ("k", (4, 64), range(1, 3))], dim=0)
    stored = method.store(rows, dtype=torch.float32)
    assert stored.shard == rows and stored.values.shape == (5, 32)
    nobody = vocab_shard("output.weight", (2, 64), tp_size=3, tp_rank=2)
    assert method.store(nobody, dtype=torch.float32).values.shape == (1, 32)
    assert method.store(replicated("w", (6, 64)), dtype=torch.float32).values.shape == (6, 32)


# Engines ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ("gptq", UnknownNameError, "unknown quantisation 'gptq'; known"),
        ("int8:64", UsageError, "group size 64 exceeds the 32 input features of w1.weight; use 32"),
        ("fp8", HardwareError, "fp8 needs a CUDA device, not cpu; use int8"),
    ],
)
def test_an_engine_is_not_built(
    folder: str, wish: str, error: type[LlamaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(folder, device="cpu", quantize=wish)


def test_an_engine_is_built_and_names_what_it_runs(folder: str) -> None:
    llm: LLM = build(folder, quantize="int8:32", device="cpu")
    assert llm.engine.config.quantize == "int8:32"
    assert llm.generate("the meaning")[0].text
    assert llm.score("the meaning of the fox")[0].perplexity > 1
    held = llm.load_report.bytes_held
    plain = build(folder, device="cpu").load_report.bytes_held
    assert held < plain


# fp8 ----------------------------------------------------------------------------------------------


def test_fp8_keeps_its_columns_with_the_scale_of_the_whole_row() -> None:
    weights = random_model(CONFIG)
    for tp in (1, 3):
        for rank in range(tp):
            stage = stage_at(CONFIG, tp, 1, rank, method=RowwiseFp8())
            load(stage, in_memory(CONFIG, weights), device="cpu", all_names=tensor_names(CONFIG))
            layer = stage.layers["0"].attention.wo
            own = layer.part
            values, scales = quantize_rows(weights["layers.0.attention.wo.weight"])
            assert torch.equal(layer.scales, scales)
            want = values[:, own.start : own.stop].float()
            assert torch.equal(layer.weight[:72, : len(own)].float(), want)
            assert layer.weight.shape[0] % 16 == layer.weight.shape[1] % 16 == 0
            assert not layer.weight[72:].float().any()
            assert not layer.weight[:, len(own) :].float().any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_fp8_product_is_close_to_the_plain_one(device: str) -> None:
    """A CPU has this product too, if slowly."""
    weights = random_model(CONFIG)
    stage = stage_at(CONFIG, 1, 1, 0, dtype=torch.bfloat16, method=RowwiseFp8())
    load(stage, in_memory(CONFIG, weights), device=device, all_names=tensor_names(CONFIG))
    for owner, layer in linears(stage):
        names = [owner + piece.source for piece in layer.weight.shard.pieces]
        whole = torch.cat([weights[name] for name in names]).to(device)
        x = torch.randn(7, whole.shape[1], generator=torch.Generator().manual_seed(1))
        x = x.to(device, torch.bfloat16)
        want = x.float() @ whole.t()
        error = (layer.multiply(x).float() - want).square().mean().sqrt()
        assert error < 0.06 * want.std(), names


@pytest.mark.gpu
@pytest.mark.parametrize("wish", ["int8:32", "int4:32", "fp8"])
def test_a_gpu_has_the_numbers_that_a_cpu_has(wish: str) -> None:
    config, weights = EngineConfig(max_seq_len=8, quantize=wish), random_model(CONFIG)
    reader, context = in_memory(CONFIG, weights), single()
    stage, _ = load_stage(reader, config=config, context=context, dtype=torch.bfloat16)
    other = stage_at(CONFIG, 1, 1, 0, dtype=torch.bfloat16, method=linear_method(wish))
    load(other, reader, device="cpu", all_names=tensor_names(CONFIG))
    held = dict(other.named_parameters())
    for path, parameter in stage.named_parameters():
        assert parameter.is_cuda
        assert torch.equal(parameter.cpu().view(torch.uint8), held[path].view(torch.uint8)), path


def test_a_folder_of_quantised_weights_is_refused(folder: str, tmp_path: Path) -> None:
    """They would be rounded twice; the message of the format names what to use."""
    copied = tmp_path / "model"
    copied.mkdir()
    for path in Path(folder).iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    params = (copied / "params.json").read_text()
    (copied / "params.json").write_text(
        params.replace("{", '{"quantization_args": {"scheme": "int8"}, ', 1)
    )
    with pytest.raises(LlamaError, match="quantised weights; use the checkpoint in bfloat16"):
        build(str(copied), quantize="int8:32")
