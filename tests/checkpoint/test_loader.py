"""The pull loader: every rank of every layout gets exactly its slices, nothing is lost quietly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from llama.checkpoint import open_checkpoint
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.loader import load
from llama.checkpoint.reader import CheckpointReader
from llama.config import ModelConfig
from llama.errors import CheckpointError, OutOfMemoryError
from llama.layers.parameter import materialize, pieces, sharded_parameter
from llama.models.decoder import tensor_names
from llama.parallel.shard import replicated, sliced, stacked, vocab_shard
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.stage_weights import digest, expected, stage_at

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config()
LAYOUTS = list(product((1, 2, 3, 5, 8), (1, 2, 3)))


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


@pytest.mark.parametrize(("n_files", "embedding_split"), [(1, 0), (2, 1), (4, 0), (8, 1)])
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


class Twice(nn.Module):
    """Two parameters that are one tensor, and one that is some of its rows; they start as -1."""

    def __init__(self) -> None:
        super().__init__()
        name = "tok_embeddings.weight"
        self.tok_embeddings = Tiny._layer(replicated(name, (64, 32)), torch.float32)
        self.output = Tiny._layer(replicated(name, (64, 32)), torch.float32)
        self.part = Tiny._layer(sliced(name, (64, 32), 0, range(16, 48)), torch.float32)

    def materialize(self, device: torch.device) -> None:
        materialize(self, device)
        for parameter in self.parameters():
            parameter.data.fill_(-1)


class Watched(MemoryTensor):
    """A tensor in memory that says when it is read."""

    asked: ClassVar[list[int]] = []

    def read_into(self, out: Tensor) -> int:
        self.asked.append(out.numel())
        return super().read_into(out)

    def view(self, change: Callable[[Tensor], Tensor]) -> Watched:
        return Watched(change(self.tensor))


def in_memory(
    tensors: Mapping[str, Tensor], ignored: Mapping[str, str] | None = None
) -> CheckpointReader:
    """A reader of tensors that are already here, to take things away from or add to."""
    Watched.asked.clear()
    stored = {name: StoredTensor.of([Watched(tensor)]) for name, tensor in tensors.items()}
    return CheckpointReader("memory", Path(), CONFIG, stored, ignored=ignored or {})


@pytest.fixture(name="weights")
def _weights() -> dict[str, Tensor]:
    return random_model(CONFIG)


def load_tiny(reader: CheckpointReader, **options: Any) -> tuple[Tiny, LoadReport]:
    stage = options.pop("stage", None) or Tiny()
    options = {"device": "cpu", "all_names": tensor_names(CONFIG), **options}
    return stage, load(stage, reader, **options)


def test_pieces_land_where_they_belong(weights: dict[str, Tensor]) -> None:
    reader = in_memory(weights)
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
    assert len(Watched.asked) == report.n_tensors == 5
    assert report.bytes_held == 4 * (11 * 32 + 32 * 16 + 22 * 32 + 32)
    assert (report.bytes_read, report.bytes_handed) == (0, 0)


@pytest.mark.parametrize("is_stored", [False, True])
def test_every_parameter_that_is_cut_from_a_tensor_gets_it(
    is_stored: bool, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    reader = in_memory(weights)
    if is_stored:
        reader = open_checkpoint(write_meta(tmp_path, CONFIG, weights))
    stage = Twice()
    load(stage, reader, device="cpu", all_names=tensor_names(CONFIG))
    table = weights["tok_embeddings.weight"]
    for parameter in (stage.tok_embeddings.weight, stage.output.weight):
        assert torch.equal(parameter, table)
    assert torch.equal(stage.part.weight, table[16:48])


def test_parameters_keep_their_dtype(weights: dict[str, Tensor]) -> None:
    reader = in_memory({name: weight.half() for name, weight in weights.items()})
    stage, report = load_tiny(reader, stage=Tiny(torch.bfloat16))
    wo = stage.layers["1"].attention.wo.weight
    assert torch.equal(wo, weights["layers.1.attention.wo.weight"][:, 8:24].half().bfloat16())
    assert report.dtypes == {"float16": 5}
    assert not wo.requires_grad


def test_mixed_dtypes_are_reported(weights: dict[str, Tensor]) -> None:
    weights["norm.weight"] = weights["norm.weight"].double()
    _, report = load_tiny(in_memory(weights))
    assert report.dtypes == {"float32": 4, "float64": 1}


def test_the_report_is_one_line(weights: dict[str, Tensor]) -> None:
    _, report = load_tiny(in_memory(weights, ignored={"rope.freqs": "computed"}))
    line = str(report)
    assert "\n" not in line
    assert line.startswith("rank 0: 5 tensors (5 float32), holds 0.0 MiB, read 0.0 MiB and ")
    assert line.endswith(", ignored rope.freqs")
    slow = LoadReport(3, 123, 2**31, 2**30, 2**29, 2.0, 2**31, {"bfloat16": 123}, {})
    assert str(slow) == (
        "rank 3: 123 tensors (123 bfloat16), holds 2.00 GiB, read 1.00 GiB and was handed "
        "512.0 MiB in 2.0 s (0.54 GB/s), peak 2.00 GiB"
    )
    assert LoadReport.from_json(slow.to_json()) == slow


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.ffn_norm.weight"])
def test_a_missing_tensor_is_named_also_by_ranks_that_do_not_need_it(
    name: str, weights: dict[str, Tensor]
) -> None:
    del weights[name]
    reader = in_memory(weights)
    stage = Tiny()
    with pytest.raises(CheckpointError, match=f"lacks 1 of the 30 tensors of this model: {name};"):
        load_tiny(reader, stage=stage)
    assert not Watched.asked
    assert all(parameter.is_meta for parameter in stage.parameters())


def test_many_missing_tensors_are_counted(weights: dict[str, Tensor]) -> None:
    few = {name: weight for name, weight in weights.items() if not name.startswith("layers.2.")}
    del few["output.weight"], few["norm.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 11 of the 30 .*norm\.weight and 1 more;"):
        load_tiny(in_memory(few))


def test_unused_tensors_are_an_error(weights: dict[str, Tensor]) -> None:
    weights["layers.3.attention.wq.weight"] = torch.ones(1)
    message = r"has 1 tensors that this model would not use: layers\.3\.attention\.wq\.weight;"
    with pytest.raises(CheckpointError, match=message):
        load_tiny(in_memory(weights))


def test_a_tensor_of_another_shape_is_refused_before_memory_is_taken(
    weights: dict[str, Tensor],
) -> None:
    reader = in_memory(weights)
    with pytest.raises(CheckpointError) as caught:
        load_tiny(reader, stage=Tiny(wide=33))
    assert (
        "layers.1.attention.wk.weight (memory) has shape (32, 32), but "
        "layers.1.attention.wkv.weight is cut from (32, 33)"
    ) in str(caught.value)
    assert not Watched.asked


def test_too_little_memory_is_known_beforehand(weights: dict[str, Tensor]) -> None:
    need = 4 * (11 * 32 + 32 * 16 + 22 * 32 + 32)
    _, report = load_tiny(in_memory(weights), available_bytes=need)
    assert report.bytes_held == need
    stage = Tiny()
    message = f"need {need:,} bytes .* on cpu, of which {need - 1:,} bytes"
    with pytest.raises(OutOfMemoryError, match=message):
        load_tiny(in_memory(weights), stage=stage, available_bytes=need - 1)
    assert all(parameter.is_meta for parameter in stage.parameters())


class Refusing(Tiny):
    def materialize(self, device: torch.device) -> None:
        raise RuntimeError("something else")


def test_other_failures_pass_as_they_are(weights: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        load_tiny(in_memory(weights), stage=Refusing())


class LongWinded(Tiny):
    def materialize(self, device: torch.device) -> None:
        super().materialize(device)
        torch.empty(2**60, dtype=torch.uint8)  # as a table of all positions would be


def test_tables_that_do_not_fit_are_not_called_weights(weights: dict[str, Tensor]) -> None:
    message = r"weights \(.*\) fit on cpu, but not the tables.*lower max_seq_len"
    with pytest.raises(OutOfMemoryError, match=message):
        load_tiny(in_memory(weights), stage=LongWinded())


LIMITED = """
import resource, torch
from pathlib import Path
from llama.checkpoint.loading.loader import load
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.files.stored import StoredTensor
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

stored = StoredTensor.of([MemoryTensor(torch.empty(2**14, 2**14, device="meta"))])
reader = CheckpointReader("memory", Path(), None, {"output.weight": stored}, ignored={})
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**28
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load(Stage(), reader, device="cpu", all_names=["output.weight"])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_refused_allocation_has_need_and_have() -> None:
    """With 256 MiB of address space left."""
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    printed = done.stdout
    assert printed.startswith(
        "OutOfMemoryError this rank's weights need 1,073,741,824 bytes (1.00 GiB)"
    )
    assert "on cpu, of which 0 bytes" in printed


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
