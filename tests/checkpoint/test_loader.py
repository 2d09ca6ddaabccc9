"""The pull loader: every rank of every layout gets exactly its slices, nothing is lost quietly."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama.checkpoint import open_checkpoint
from llama.checkpoint.loader import LoadReport, load
from llama.checkpoint.reader import TensorInfo
from llama.config import ModelConfig
from llama.errors import CheckpointError, OutOfMemoryError
from llama.layers.parameter import materialize, pieces, sharded_parameter
from llama.models.decoder import DecoderStage, stage_of, tensor_names
from llama.parallel.shard import replicated, sliced, stacked, vocab_shard
from tests.helpers.checkpoints import random_model, tiny_config, write_meta

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config()
LAYOUTS = list(product((1, 2, 3, 5, 8), (1, 2, 3)))


def stage_at(config: ModelConfig, tp: int, pp: int, rank: int) -> DecoderStage:
    """The stage of one rank; making and filling it needs a place on the tp axis, not a peer."""
    pp_rank, tp_rank = divmod(rank, tp)
    place: Any = SimpleNamespace(rank=tp_rank, size=tp)
    stage = stage_of(config, pp_size=pp, pp_rank=pp_rank)
    return DecoderStage(config, stage, tp=place, dtype=torch.float32, max_positions=8)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def expected(parameter: Any, weights: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """What a parameter should hold, cut from the whole tensors."""
    out = torch.zeros(parameter.shape)
    for piece, name in zip(parameter.shard.pieces, names, strict=True):
        part = weights[name]
        if piece.dim is None:
            out.copy_(part)
        else:
            rows = list(range(piece.start, piece.stop))
            here = torch.arange(piece.offset, piece.offset + len(rows))
            out.index_copy_(
                piece.dim, here, part.index_select(piece.dim, torch.tensor(rows, dtype=torch.long))
            )
    return out


def check_all_layouts(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    reader = open_checkpoint(folder)
    all_names = tensor_names(config)
    for tp, pp in LAYOUTS:
        seen = set()
        for rank in range(tp * pp):
            stage = stage_at(config, tp, pp, rank)
            report = load(stage, reader, device="cpu", all_names=all_names)
            names: dict[int, list[str]] = {}
            for parameter, _, name in pieces(stage):
                names.setdefault(id(parameter), []).append(name)
            for path, parameter in stage.named_parameters():
                held = names.get(id(parameter), [])
                want = expected(parameter, weights, held)
                assert digest(parameter) == digest(want), (
                    f"{path} of rank {rank}, tp {tp} x pp {pp}"
                )
                seen.update(held)
            held_now = [p for _, p in stage.named_parameters()]
            assert report.bytes_held == sum(p.nbytes for p in held_now)
            assert report.n_tensors == len({name for held in names.values() for name in held})
        assert seen == set(weights)
    reader.close()


@pytest.mark.parametrize("embedding_split", [0, 1])
@pytest.mark.parametrize("n_files", [1, 2, 4, 8])
def test_every_rank_of_every_layout_gets_its_slices(
    n_files: int, embedding_split: int, tmp_path: Path
) -> None:
    weights = random_model(CONFIG)
    write_meta(tmp_path, CONFIG, weights, n_files=n_files, embedding_split=embedding_split)
    check_all_layouts(tmp_path, CONFIG, weights)


def test_the_same_with_copied_kv_heads_biases_and_an_odd_vocabulary(tmp_path: Path) -> None:
    config = tiny_config(n_kv_heads=2, vocab_size=68, attention_bias=True, mlp_bias=True)
    weights = random_model(config)
    write_meta(tmp_path, config, weights, n_files=4)
    check_all_layouts(tmp_path, config, weights)


class Tiny(nn.Module):
    """A stage written by hand: a fused layer, a padded embedding and a norm."""

    def __init__(self, dtype: torch.dtype = torch.float32, wide: int = 32) -> None:
        super().__init__()
        self.tok_embeddings = self._layer(
            vocab_shard("tok_embeddings.weight", (64, 32), tp_size=3, tp_rank=2), dtype
        )
        self.norm = self._layer(replicated("norm.weight", (32,)), dtype)
        block = nn.Module()
        block.attention = nn.Module()
        block.attention.wkv = self._layer(
            stacked(
                [("wk.weight", (32, wide), range(4, 12)), ("wv.weight", (32, wide), range(0, 3))],
                dim=0,
            ),
            dtype,
        )
        block.attention.wo = self._layer(sliced("wo.weight", (32, 32), 1, range(8, 24)), dtype)
        self.layers = nn.ModuleDict({"1": block})

    @staticmethod
    def _layer(shard: Any, dtype: torch.dtype) -> nn.Module:
        layer = nn.Module()
        layer.weight = sharded_parameter(shard, dtype=dtype)
        return layer

    def materialize(self, device: torch.device) -> None:
        materialize(self, device)


class Dict:
    """A reader of tensors that are already here, to take things away from or add to."""

    config = CONFIG

    def __init__(
        self, tensors: Mapping[str, Tensor], ignored: Mapping[str, str] | None = None
    ) -> None:
        self.held = dict(tensors)
        self.ignored = dict(ignored or {})
        self.asked: list[str] = []

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(tuple(t.shape), t.dtype, ("all.pth",)) for name, t in self.held.items()
        }

    def read_into(self, out: Tensor, name: str, *, dim: int | None = None, start: int = 0) -> int:
        self.asked.append(name)
        source = self.held[name]
        out.copy_(source if dim is None else source.narrow(dim, start, out.shape[dim]))
        return out.numel() * source.element_size()

    def close(self) -> None:
        self.held.clear()


@pytest.fixture(name="weights")
def _weights() -> dict[str, Tensor]:
    return random_model(CONFIG)


def load_tiny(reader: Dict, **options: Any) -> tuple[Tiny, LoadReport]:
    stage = options.pop("stage", None) or Tiny()
    options = {"device": "cpu", "all_names": tensor_names(CONFIG), **options}
    return stage, load(stage, reader, **options)


def test_pieces_land_where_they_belong(weights: dict[str, Tensor]) -> None:
    reader = Dict(weights)
    stage, report = load_tiny(reader)
    wkv = stage.layers["1"].attention.wkv.weight
    assert torch.equal(wkv[:8], weights["layers.1.attention.wk.weight"][4:12])
    assert torch.equal(wkv[8:], weights["layers.1.attention.wv.weight"][:3])
    wo = stage.layers["1"].attention.wo.weight
    assert torch.equal(wo, weights["layers.1.attention.wo.weight"][:, 8:24])
    embedding = stage.tok_embeddings.weight
    assert torch.equal(embedding[:20], weights["tok_embeddings.weight"][44:])
    assert embedding.shape == (22, 32)
    assert not embedding[20:].any()
    assert len(reader.asked) == report.n_tensors == 5
    assert report.bytes_held == 4 * (11 * 32 + 32 * 16 + 22 * 32 + 32)
    assert report.bytes_read == report.bytes_held - 4 * 2 * 32


def test_parameters_keep_their_dtype(weights: dict[str, Tensor]) -> None:
    reader = Dict({name: weight.half() for name, weight in weights.items()})
    stage, report = load_tiny(reader, stage=Tiny(torch.bfloat16))
    wo = stage.layers["1"].attention.wo.weight
    assert torch.equal(wo, weights["layers.1.attention.wo.weight"][:, 8:24].half().bfloat16())
    assert report.dtypes == {"float16": 5}
    assert not wo.requires_grad


def test_mixed_dtypes_are_reported(weights: dict[str, Tensor]) -> None:
    weights["norm.weight"] = weights["norm.weight"].double()
    _, report = load_tiny(Dict(weights))
    assert report.dtypes == {"float32": 4, "float64": 1}


def test_the_report_is_one_line(weights: dict[str, Tensor]) -> None:
    _, report = load_tiny(Dict(weights, ignored={"rope.freqs": "computed"}))
    line = str(report)
    assert "\n" not in line
    assert line.startswith("5 tensors (5 float32), holds 0.00 GiB, read 0.00 GiB in ")
    assert line.endswith(", ignored rope.freqs")
    slow = LoadReport(123, 2**31, 2**30, 2.0, {"bfloat16": 123}, {})
    assert str(slow) == (
        "123 tensors (123 bfloat16), holds 2.00 GiB, read 1.00 GiB in 2.0 s (0.50 GiB/s)"
    )


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.ffn_norm.weight"])
def test_a_missing_tensor_is_named_also_by_ranks_that_do_not_need_it(
    name: str, weights: dict[str, Tensor]
) -> None:
    del weights[name]
    reader = Dict(weights)
    stage = Tiny()
    with pytest.raises(CheckpointError, match=f"lacks 1 of the 30 tensors of this model: {name};"):
        load_tiny(reader, stage=stage)
    assert not reader.asked
    assert all(parameter.is_meta for parameter in stage.parameters())


def test_many_missing_tensors_are_counted(weights: dict[str, Tensor]) -> None:
    few = {name: weight for name, weight in weights.items() if not name.startswith("layers.2.")}
    del few["output.weight"], few["norm.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 11 of the 30 .*norm\.weight and 1 more;"):
        load_tiny(Dict(few))


def test_unused_tensors_are_an_error(weights: dict[str, Tensor]) -> None:
    weights["layers.3.attention.wq.weight"] = torch.ones(1)
    message = r"has 1 tensors that this model would not use: layers\.3\.attention\.wq\.weight;"
    with pytest.raises(CheckpointError, match=message):
        load_tiny(Dict(weights))


def test_a_tensor_of_another_shape_is_refused_before_memory_is_taken(
    weights: dict[str, Tensor],
) -> None:
    reader = Dict(weights)
    with pytest.raises(CheckpointError) as caught:
        load_tiny(reader, stage=Tiny(wide=33))
    assert (
        "layers.1.attention.wk.weight (all.pth) has shape (32, 32), but "
        "layers.1.attention.wkv.weight is cut from (32, 33)"
    ) in str(caught.value)
    assert not reader.asked


def test_too_little_memory_is_known_beforehand(weights: dict[str, Tensor]) -> None:
    need = 4 * (11 * 32 + 32 * 16 + 22 * 32 + 32)
    _, report = load_tiny(Dict(weights), available_bytes=need)
    assert report.bytes_held == need
    stage = Tiny()
    message = f"need {need:,} bytes .* on cpu, of which {need - 1:,} bytes"
    with pytest.raises(OutOfMemoryError, match=message):
        load_tiny(Dict(weights), stage=stage, available_bytes=need - 1)
    assert all(parameter.is_meta for parameter in stage.parameters())


class Refusing(Tiny):
    def materialize(self, device: torch.device) -> None:
        raise RuntimeError("something else")


def test_other_failures_pass_as_they_are(weights: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        load_tiny(Dict(weights), stage=Refusing())


LIMITED = """
import resource, sys, torch
from llama.checkpoint import open_checkpoint
from llama.checkpoint.loader import load
from llama.layers.parameter import materialize, sharded_parameter
from llama.parallel.shard import replicated
from torch import nn

class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Module()
        shard = replicated("output.weight", (2**14, 2**14))
        self.output.weight = sharded_parameter(shard, dtype=torch.float32)
    def materialize(self, device):
        materialize(self, device)

class Reader:
    tensors = {"output.weight": type("Info", (), {"shape": (2**14, 2**14), "dtype": torch.float32})}
    ignored = {}

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**28
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    if sys.argv[1] == "load":
        load(Stage(), Reader(), device="cpu", all_names=["output.weight"])
    else:
        open_checkpoint(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def under_a_memory_limit(argument: str) -> str:
    """What happens with 256 MiB of address space left."""
    command = [sys.executable, "-c", LIMITED, argument]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_refused_allocation_has_need_and_have() -> None:
    printed = under_a_memory_limit("load")
    assert printed.startswith(
        "OutOfMemoryError this rank's weights need 1,073,741,824 bytes (1.00 GiB)"
    )
    assert "on cpu, of which 0 bytes" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_file_that_cannot_be_mapped_is_a_memory_error(tmp_path: Path) -> None:
    write_meta(tmp_path, CONFIG, {**random_model(CONFIG), "output.weight": torch.zeros(2**21, 32)})
    assert under_a_memory_limit(str(tmp_path)).startswith("OutOfMemoryError no room to map")


@pytest.mark.gpu
def test_weights_go_to_the_gpu(tmp_path: Path) -> None:
    weights = random_model(CONFIG)
    write_meta(tmp_path, CONFIG, weights, n_files=2, embedding_split=1, dtype=torch.bfloat16)
    stages = [stage_at(CONFIG, 3, 2, 4) for _ in range(2)]
    for stage, device in zip(stages, ("cpu", "cuda"), strict=True):
        load(stage, open_checkpoint(tmp_path), device=device, all_names=tensor_names(CONFIG))
    on_cpu, on_gpu = (dict(stage.named_parameters()) for stage in stages)
    assert all(on_gpu[path].is_cuda for path in on_gpu)
    assert all(torch.equal(on_gpu[path].cpu(), on_cpu[path]) for path in on_cpu)
