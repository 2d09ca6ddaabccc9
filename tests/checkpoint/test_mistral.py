"""Mistral's own files: both containers, its windows, and what is refused."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.mistral import MISTRAL
from llama.errors import CheckpointError
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.mistral_files import write_mistral

# heads wider than dim / n_heads, as in Nemo
CONFIG = tiny_config(n_kv_heads=2, head_dim=6, rope_theta=1e6)
WEIGHTS = random_model(CONFIG)
Container = Literal["pth", "safetensors"]
CONTAINERS: tuple[Container, ...] = ("pth", "safetensors")


def message_of(folder: Path, format: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, format=format)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("container", CONTAINERS)
def test_both_containers(container: Container, dtype: torch.dtype, tmp_path: Path) -> None:
    config = replace(CONFIG, sliding_window=16)
    reader = open_checkpoint(
        write_mistral(tmp_path, config, WEIGHTS, container=container, dtype=dtype)
    )
    assert reader.format == "mistral"
    assert reader.config == config
    assert reader.notes == ()
    assert list(reader.tensors) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        out = torch.empty(weight.shape, dtype=dtype)
        assert reader.read_into(out, name) == out.nbytes
        assert torch.equal(out, weight.to(dtype)), name
    reader.close()


WINDOWS: list[tuple[Any, int | tuple[int | None, ...] | None]] = [
    (4096, 4096),
    ("4096", 4096),
    (None, None),
    ([16, None, 32], (16, None, 32)),
    ([8], (8,)),
]


@pytest.mark.parametrize("key", ["sliding_window", "_sliding_window"])
@pytest.mark.parametrize(("given_window", "window"), WINDOWS)
def test_windows(given_window: Any, window: Any, key: str, tmp_path: Path) -> None:
    write_mistral(tmp_path, CONFIG, WEIGHTS, params_extra={key: given_window})
    assert open_checkpoint(tmp_path).config.sliding_window == window


@pytest.mark.parametrize(("window", "theta"), [(4096, 1e4), (None, 1e6)])
def test_a_missing_base_is_that_of_the_time(
    window: int | None, theta: float, tmp_path: Path
) -> None:
    write_mistral(
        tmp_path, CONFIG, WEIGHTS, params_extra={"rope_theta": None, "sliding_window": window}
    )
    assert open_checkpoint(tmp_path).config.rope_theta == theta


def test_which_folders_are_mistral_s(tmp_path: Path) -> None:
    windowed, plain, both = tmp_path / "windowed", tmp_path / "plain", tmp_path / "both"
    write_mistral(windowed, CONFIG, WEIGHTS, container="pth", params_extra={"sliding_window": 4096})
    assert MISTRAL.recognises(windowed)
    write_mistral(plain, CONFIG, WEIGHTS, container="pth")
    assert not MISTRAL.recognises(plain)  # as Meta's, which it equals
    assert open_checkpoint(plain, format="mistral").config == CONFIG
    for container in CONTAINERS:
        write_mistral(both, CONFIG, WEIGHTS, container=container)
    reader = open_checkpoint(both)
    assert reader.format == "mistral"
    assert reader.tensors["norm.weight"].paths == (both / "consolidated.safetensors",)
    assert reader.notes == ("consolidated.safetensors is read, consolidated.00.pth is not",)
    (windowed / "params.json").write_text("[")
    assert not MISTRAL.recognises(windowed)
    (windowed / "params.json").unlink()
    assert not MISTRAL.recognises(windowed)


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    write_mistral(tmp_path, CONFIG, WEIGHTS, container="pth")
    (tmp_path / "consolidated.01.pth").touch()
    message = message_of(tmp_path, "mistral")
    assert "holds consolidated.01.pth besides consolidated.00.pth" in message
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    assert "needs consolidated.safetensors or consolidated.00.pth" in message_of(
        tmp_path, "mistral"
    )


FOREIGN = [
    ("vision_encoder.patch_conv.weight", "has a vision encoder"),
    ("vision_language_adapter.w_in.weight", "has a vision encoder"),
    ("layers.0.feed_forward.experts.0.w1.weight", "is a mixture of experts"),
    ("layers.0.feed_forward.gate.weight", "is a mixture of experts"),
    ("layers.0.attention.wq.qscale_weight", "is quantised"),
    ("layers.0.attention.wq.lora_A.weight", "has low-rank adapters"),
    ("other.weight", "has 1 tensors that its model would not use: other.weight"),
]


@pytest.mark.parametrize(("name", "expected"), FOREIGN)
def test_foreign_tensors_are_refused_by_name(name: str, expected: str, tmp_path: Path) -> None:
    path = write_mistral(tmp_path, CONFIG, WEIGHTS) / "consolidated.safetensors"
    save_file({**load_file(path), name: torch.ones(2, 2)}, path)
    message = message_of(tmp_path)
    assert expected in message
    assert name in message
    assert str(tmp_path) in message


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"moe": {"num_experts": 8}}, "moe an object means a mixture of experts"),
    ({"vision_encoder": {"hidden_size": 1024}}, "vision_encoder an object means"),
    ({"lora": {"rank": 64}}, "low-rank adapters"),
    ({"head_dim": None}, "lacks head_dim"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"vocab_size": 65}, "tok_embeddings.weight has shape (64, 32)"),
    ({"sliding_window": 0}, "sliding_window must be tokens from 1"),
    ({"sliding_window": "all"}, "sliding_window must be"),
    ({"sliding_window": []}, "sliding_window lists 0 windows"),
    ({"model_type": "mamba"}, "model_type must be 'transformer'"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"what": 1}, "unknown keys what"),
]


@pytest.mark.parametrize(("extra", "expected"), REFUSED)
def test_refused_params(extra: dict[str, Any], expected: str, tmp_path: Path) -> None:
    write_mistral(tmp_path, CONFIG, WEIGHTS, params_extra=extra)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


KEYS = (
    "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size",
    "rope_theta", "sliding_window", "_sliding_window", "moe", "lora", "model_type",
    "max_batch_size", "vision_encoder", "unknown",
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("fuzz"), CONFIG, WEIGHTS)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_params_make_a_model_or_our_error(values: dict[str, Any], folder: Path) -> None:
    path = folder / "params.json"
    original = folder.parent / "mistral params"
    if not original.exists():
        original.write_text(path.read_text())
    path.write_text(json.dumps({**json.loads(original.read_text()), **values}))
    with contextlib.suppress(CheckpointError):
        assert open_checkpoint(folder).tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_link_may_not_lead_out_of_the_folder(container: Container, tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "model", CONFIG, WEIGHTS, container=container)
    (file,) = folder.glob("consolidated.*")
    file.rename(folder / "weights")
    file.symlink_to("weights")
    assert open_checkpoint(folder, format="mistral").config == CONFIG
    (folder / "weights").rename(tmp_path / "weights")
    file.unlink()
    file.symlink_to("../weights")
    message = message_of(folder, "mistral")
    assert f"{file} is a link that leads out of its folder, to {tmp_path / 'weights'}" in message
