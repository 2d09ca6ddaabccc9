"""`llama inspect` as a user runs it, on folders that are whole and on folders that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from llama.checkpoint.canonical import expected_shapes, split_dim
from llama.checkpoint.inspect import TensorEntry
from llama.cli import main
from llama.cli.places import places
from llama.config import ModelConfig
from llama.layers.parameter import pieces
from llama.models.decoder import DecoderStage, stage_of
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.dcp_files import write_dcp
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import write_megatron
from tests.helpers.mistral_files import write_mistral
from tests.helpers.programs import environment, run
from tests.helpers.stages import Place

pytestmark = pytest.mark.slow

CONFIG = tiny_config(n_kv_heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_meta(tmp_path / "model", CONFIG, random_model(CONFIG), n_files=2)


def inspected(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, object]:
    assert main(["inspect", str(folder), "--json", *words]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_json_has_every_tensor_and_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README").write_text("hello")
    found = inspected(capsys, folder)
    shapes = expected_shapes(CONFIG)
    assert found["format"] == "meta" and found["problem"] is None
    assert found["config"]["n_layers"] == CONFIG.n_layers
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == shapes
    assert found["n_parameters"] == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert found["size_bytes"] == 4 * found["n_parameters"]
    assert found["dtypes"] == {"float32": len(shapes)}
    files = {entry["name"]: entry for entry in found["files"]}
    assert set(files) == {"README", "consolidated.00.pth", "consolidated.01.pth", "params.json"}
    assert files["README"] == {"name": "README", "size_bytes": 5, "n_tensors": 0}
    assert files["consolidated.00.pth"]["n_tensors"] > files["consolidated.01.pth"]["n_tensors"] > 0
    (wo,) = [t for t in found["tensors"] if t["name"] == "layers.0.attention.wo.weight"]
    assert wo["split"] == 1 and wo["files"] == ["consolidated.00.pth", "consolidated.01.pth"]
    assert "rope.freqs" in found["ignored"]


def test_text_is_not_cut_off(folder: Path) -> None:
    done = run(["-m", "llama", "inspect", str(folder)], env={"COLUMNS": "40"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name, shape in expected_shapes(CONFIG).items():
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert " x ".join(map(str, shape)) in line and "float32" in line
        if name.endswith("wo.weight"):
            assert line.endswith("dim 1  consolidated.00.pth, consolidated.01.pth")
    assert "rope.freqs ignored" in done.stdout


FORMATS = {
    "hf": lambda path: write_hf(path, CONFIG, random_model(CONFIG), kind="bin"),
    "mistral": lambda path: write_mistral(path, CONFIG, random_model(CONFIG)),
    "megatron": lambda path: write_megatron(path, CONFIG, random_model(CONFIG), tp=2, pp=3),
    "dcp": lambda path: write_dcp(path, CONFIG, random_model(CONFIG), n_ranks=2),
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_named_and_its_files_are_verified(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FORMATS[format](tmp_path)
    found = inspected(capsys, folder, "--write_manifest")
    assert found["format"] == format
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == expected_shapes(CONFIG)
    holders = [entry["name"] for entry in found["files"] if entry["n_tensors"]]
    manifest = (folder / "MANIFEST.sha256").read_text().splitlines()
    assert holders and set(holders) <= {line.split("  ", 1)[1] for line in manifest}
    inspected(capsys, folder, "--verify")


def test_a_tied_head_is_shown_and_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tied_embeddings=True)
    weights = random_model(config)
    folder = write_hf(tmp_path, config, weights, n_shards=2)
    found = inspected(capsys, folder)
    assert found["format"] == "hf" and found["config"]["tied_embeddings"]
    own = [entry for entry in found["tensors"] if entry["tied_to"] is None]
    assert found["tensors"][-1]["tied_to"] == "tok_embeddings.weight"
    assert len(own) == len(found["tensors"]) - 1
    assert found["n_parameters"] == sum(torch.Size(entry["shape"]).numel() for entry in own)
    assert sum(entry["n_tensors"] for entry in found["files"]) == len(own)
    assert main(["inspect", str(folder)]) == 0
    assert "= tok_embeddings.weight" in capsys.readouterr().out


def test_shared_bytes_are_told_as_tied_and_as_duplicated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(dim=32, n_heads=4, n_kv_heads=4, head_dim=8)
    folder = write_meta(tmp_path, config, random_model(config))
    path = folder / "consolidated.00.pth"
    weights = torch.load(path, weights_only=True)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    wk, wv, wq = (f"layers.1.attention.{name}.weight" for name in ("wk", "wv", "wq"))
    weights[wv] = weights[wk]
    weights[wq] = weights[wk].t()  # the same bytes, but another matrix
    torch.save(weights, path)
    found = inspected(capsys, folder)
    tensors = {entry["name"]: entry for entry in found["tensors"]}
    shared = {n: (t["tied_to"], t["duplicate_of"]) for n, t in tensors.items()}
    assert shared.pop("output.weight") == ("tok_embeddings.weight", None)
    assert shared.pop(wv) == (None, wk)
    assert set(shared.values()) == {(None, None)}
    own = [t for name, t in tensors.items() if name not in ("output.weight", wv)]
    assert found["n_parameters"] == sum(torch.Size(t["shape"]).numel() for t in own)
    assert [entry["n_tensors"] for entry in found["files"] if entry["n_tensors"]] == [len(own)]
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "  output.weight is tied to tok_embeddings.weight\n" in out
    assert f"  {wv} is duplicated: its bytes are those of {wk}\n" in out


NESTED = {
    "megatron": lambda path: write_megatron(path, CONFIG, random_model(CONFIG), tp=2, pp=3),
    "dcp": lambda path: write_dcp(path, CONFIG, random_model(CONFIG), n_ranks=2),
}


@pytest.mark.parametrize("format", NESTED)
def test_files_of_a_tensor_are_named_inside_the_folder(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = NESTED[format](tmp_path)
    found = inspected(capsys, folder)
    where = {entry["name"]: entry["files"] for entry in found["tensors"]}
    stage = "iter_0001000/mp_rank_{:02d}_{:03d}/model_optim_rng.pt".format
    for name, pp_rank in (
        ("layers.0.attention.wq.weight", 0),
        ("layers.1.feed_forward.w2.weight", 1),
    ):
        expected = {
            "megatron": [stage(0, pp_rank), stage(1, pp_rank)],
            "dcp": ["__0_0.distcp", "__1_0.distcp"],
        }
        assert where[name] == expected[format]
    assert all((folder / file).is_file() for files in where.values() for file in files)
    listed = {entry["name"] for entry in found["files"]}
    assert listed == {os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file()}


CONFIGURATION = {
    "meta": (lambda path: write_meta(path, CONFIG, random_model(CONFIG)), ["params.json"]),
    "hf": (
        lambda path: write_hf(path, CONFIG, random_model(CONFIG), n_shards=2),
        ["config.json", "model.safetensors.index.json"],
    ),
    "megatron": (FORMATS["megatron"], ["latest_checkpointed_iteration.txt"]),
    "dcp": (FORMATS["dcp"], [".metadata", "params.json"]),
}


@pytest.mark.parametrize("format", CONFIGURATION)
def test_a_manifest_without_the_configuration_verifies_nothing(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, needed = CONFIGURATION[format]
    folder = write(tmp_path)
    (folder / "tokenizer.model").write_text("words")
    assert main(["inspect", str(folder), "--write_manifest"]) == 0
    manifest = folder / "MANIFEST.sha256"
    lines = manifest.read_text().splitlines()
    for name in (*needed, "tokenizer.model"):
        kept = [line for line in lines if not line.endswith(f"  {name}")]
        assert len(kept) == len(lines) - 1, name
        manifest.write_text("\n".join(kept))
        capsys.readouterr()
        assert main(["inspect", str(folder), "--verify"]) == 65
        assert f"{name} cannot be verified: MANIFEST.sha256" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--verify", "--write_manifest"])
def test_weights_behind_a_linked_folder_are_never_called_verified(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_megatron(tmp_path / "a", CONFIG, random_model(CONFIG), tp=2, iteration=None)
    assert main(["inspect", str(folder), "--write_manifest"]) == 0
    manifest = folder / "MANIFEST.sha256"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(line for line in lines if "release/" not in line))
    capsys.readouterr()
    (folder / "release").rename(tmp_path / "elsewhere")
    (folder / "release").symlink_to(tmp_path / "elsewhere")
    assert main(["inspect", str(folder), option]) == 65
    err = capsys.readouterr().err
    assert f"{folder / 'release'} is a link that leads out of its folder" in err
    assert "verified:" not in err and "wrote" not in err


def test_a_layout_shows_stage_and_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, folder, "--tp", "3", "--pp", "2")
    tensors = {entry["name"]: entry for entry in found["tensors"]}
    assert tensors["tok_embeddings.weight"]["stage"] == 0
    assert tensors["output.weight"]["stage"] == 1
    wq = tensors["layers.0.attention.wq.weight"]["rank_shapes"]
    assert sum(rows for rows, _ in wq) == 32 and len(wq) == 3
    assert main(["inspect", str(folder), "--tp", "3", "--pp", "2"]) == 0
    assert "shape on each tp rank" in capsys.readouterr().out


@pytest.mark.parametrize("tp_size", [1, 2, 3, 8])
@pytest.mark.parametrize("pp_size", [1, 3])
@pytest.mark.parametrize(
    "config", [CONFIG, tiny_config(attention_bias=True, mlp_bias=True, vocab_size=61)]
)
def test_places_are_those_of_the_model(config: ModelConfig, tp_size: int, pp_size: int) -> None:
    entries = [
        TensorEntry(name, shape, "float32", 0, (), split_dim(name), None)
        for name, shape in expected_shapes(config).items()
    ]
    told = dict(
        zip(
            [entry.name for entry in entries],
            places(config, entries, tp_size=tp_size, pp_size=pp_size),
            strict=True,
        )
    )
    seen = set()
    for pp_rank in range(pp_size):
        for tp_rank in range(tp_size):
            stage = DecoderStage(
                config,
                stage_of(config, pp_size=pp_size, pp_rank=pp_rank),
                tp=Place(tp_rank, tp_size),
                dtype=torch.float32,
                max_positions=8,
            )
            for _, piece, name in pieces(stage):
                seen.add(name)
                where, shapes = told[name]
                assert where == pp_rank, name
                assert tuple(shapes[tp_rank]) == piece.shape, name
                assert split_dim(name) == piece.dim, name
    assert seen == set(told)


def test_gpt2_has_a_split_for_every_tensor() -> None:
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=128, vocab_size=50,
        architecture="gpt2", max_positions=16, attention_bias=True, mlp_bias=True,
        activation="gelu_tanh", tied_embeddings=True,
    )  # fmt: skip
    splits = {name: split_dim(name) for name in expected_shapes(config)}
    assert (
        splits["layers.0.attention.wq.bias"] == 0 and splits["layers.1.feed_forward.w2.weight"] == 1
    )
    whole = {name.split(".", 2)[-1] for name, dim in splits.items() if dim is None}
    assert whole >= {"attention.wo.bias", "feed_forward.w2.bias", "ffn_norm.bias"}
    assert splits["pos_embeddings.weight"] is None and splits["norm.bias"] is None


def test_an_incomplete_checkpoint_is_described_and_is_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_model(CONFIG)
    del weights["layers.1.attention.wq.weight"]
    folder = write_meta(tmp_path, CONFIG, weights)
    assert main(["inspect", str(folder)]) == 65
    captured = capsys.readouterr()
    assert "format        meta" in captured.out and "consolidated.00.pth" in captured.out
    (line,) = captured.err.splitlines()
    assert "layers.1.attention.wq.weight" in line
    assert main(["generate", str(folder), "x", "--tp", "2"]) == 65
    assert capsys.readouterr().err.splitlines() == [line]
    assert main(["inspect", str(folder), "--json"]) == 65
    found = json.loads(capsys.readouterr().out)
    assert found["problem"] in line and found["config"] is None and found["tensors"] == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it is empty"),
        ({"notes.txt": "x"}, "it holds notes.txt, of no known format"),
        ({"consolidated.00.pth": "x"}, "params.json"),
    ],
)
def test_a_folder_without_a_configuration_is_65(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["inspect", str(tmp_path)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llama: error: ") and message in line


def test_a_manifest_is_written_and_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), "--verify"]) == 65
    assert "--write_manifest" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--write_manifest"]) == 0
    assert f"wrote {folder / 'MANIFEST.sha256'}" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "verified: " in capsys.readouterr().err
    path = folder / "consolidated.01.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["inspect", str(folder), "--verify"]) == 65
    assert (
        "consolidated.01.pth is not the file that MANIFEST.sha256 lists" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp", "0"], "--tp must be at least 1"),
        (["--tp", "9"], "tp_size 9 exceeds n_heads 8"),
        (["--pp", "4"], "pp_size 4 exceeds n_layers 3"),
        (["--format", "gguf"], "unknown checkpoint format 'gguf'"),
        (["--write_manifest", "--verify"], "exclude each other"),
    ],
)
def test_wrong_usage_is_64(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), *words]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_terminal_gets_a_table_that_is_not_cut_off(folder: Path) -> None:
    shown = on_terminal(["inspect", str(folder)], "stdout")
    assert "layers.2.feed_forward.w2.weight" in shown
    assert "─" in shown and "…" not in shown


def test_a_terminal_gets_a_bar_while_files_are_hashed(folder: Path) -> None:
    shown = on_terminal(["inspect", str(folder), "--write_manifest"], "stderr")
    assert "hashing" in shown and "━" in shown and "wrote " in shown


def on_terminal(words: list[str], stream: Literal["stdout", "stderr"]) -> str:
    """What `llama words...` writes to `stream` when that is a terminal."""
    reader, terminal = os.openpty()
    streams: dict[str, int] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [sys.executable, "-m", "llama", *words],
        **{**streams, stream: terminal},
        env=environment({"TERM": "xterm"}),
    )
    os.close(terminal)
    written = b""
    try:
        while block := _read(reader):
            written += block
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side has been closed
        return b""
