from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.canonical import expected_shapes
from llama.checkpoint.convert import convert
from llama.checkpoint.manifest import verify
from llama.cli import main
from llama.errors import CheckpointError, UnknownNameError, UsageError
from tests.helpers.checkpoints import params_of, random_model, tiny_config, write_meta
from tests.helpers.conversions import assert_same, converted, tensors_of
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import write_megatron
from tests.helpers.mistral_files import write_mistral

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60
GROUPED = tiny_config(n_kv_heads=4, n_layers=4)


def test_meta_to_hf_to_meta_is_exact(tmp_path: Path) -> None:
    weights = random_model(GROUPED)
    source = write_meta(tmp_path / "a", GROUPED, weights, n_files=2)
    hf = converted(source, "b", "hf")
    back = converted(hf, "c", "meta", shards=4)
    assert_same(tensors_of(back), weights)
    assert open_checkpoint(back).config == open_checkpoint(source).config


def test_meta_to_mistral_to_hf_to_meta_is_exact(tmp_path: Path) -> None:
    weights = random_model(GROUPED)
    source = write_meta(tmp_path / "a", GROUPED, weights)
    mistral = converted(source, "b", "mistral")
    assert_same(tensors_of(mistral), weights)
    hf = converted(mistral, "c", "hf", shards=3)
    assert_same(tensors_of(converted(hf, "d", "meta")), weights)


def test_llama_to_megatron_to_meta_is_exact(tmp_path: Path) -> None:
    weights = random_model(GROUPED)
    source = write_meta(tmp_path / "a", GROUPED, weights)
    megatron = converted(source, "b", "megatron", tp=2, pp=2)
    back = converted(megatron, "c", "meta")
    assert_same(tensors_of(back), weights)
    assert open_checkpoint(back).config == open_checkpoint(source).config


def test_gpt2_to_megatron_to_hf_is_exact(tmp_path: Path) -> None:
    config = tiny_gpt2_config(n_layers=4)
    weights = random_gpt2(config)
    source = write_hf(tmp_path / "a", config, weights)
    megatron = converted(source, "b", "megatron", tp=2, pp=2)
    back = converted(megatron, "c", "hf")
    assert_same(tensors_of(back), weights)
    assert open_checkpoint(back).config == open_checkpoint(source).config


@pytest.mark.parametrize("version", [None, 1.0, 3.0])
def test_every_order_of_megatron_comes_out_alike(tmp_path: Path, version: float | None) -> None:
    config = tiny_gpt2_config(n_layers=4)
    weights = random_gpt2(config)
    write_megatron(tmp_path / "a", config, weights, version=version, tp=2, pp=2, with_args=True)
    assert_same(tensors_of(converted(tmp_path / "a", "b", "hf")), weights)


def test_a_tied_head_is_stored_once_where_the_format_can(tmp_path: Path) -> None:
    config = tiny_config(tied_embeddings=True, rope_style="half")
    weights = random_model(config)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    hf = write_hf(tmp_path / "a", config, weights, is_half=True)
    meta = converted(hf, "b", "meta", shards=2, embedding_split="vocab")
    held = torch.load(meta / "consolidated.01.pth", weights_only=True, mmap=True)
    assert held["output.weight"].data_ptr() == held["tok_embeddings.weight"].data_ptr()
    again = converted(converted(hf, "e", "meta"), "f", "hf")
    assert open_checkpoint(again).config.tied_embeddings
    assert_same(tensors_of(again), weights)
    assert_same(tensors_of(converted(hf, "g", "mistral")), tensors_of(meta))
    megatron = converted(hf, "h", "megatron", tp=2, pp=3)
    assert_same(tensors_of(megatron), weights)


@pytest.mark.parametrize("to", ["meta", "hf", "mistral", "megatron"])
def test_dtype_is_that_of_torch(tmp_path: Path, to: str) -> None:
    weights = random_model(GROUPED)
    source = write_hf(tmp_path / "a", replace(GROUPED, rope_style="half"), weights, is_half=True)
    expected = {name: tensor.bfloat16() for name, tensor in tensors_of(source).items()}
    narrow = converted(source, "b", to, dtype=torch.bfloat16)
    assert_same(tensors_of(converted(narrow, "c", "hf")), expected)


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    weights = random_model(GROUPED)
    weights["layers.1.feed_forward.w2.weight"][3, 5] = 1e6
    source = write_meta(tmp_path / "a", GROUPED, weights)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.*65504.*bfloat16"):
        converted(source, "b", "hf", dtype=torch.float16)
    assert os.listdir(tmp_path) == ["a"]


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    (source / "tokenizer.model").write_bytes(b"pieces")
    (source / "generation_config.json").write_text("{}")
    (source / "secrets.txt").write_text("not asked for")
    hf = converted(source, "b", "hf")
    assert (hf / "tokenizer.model").read_bytes() == b"pieces"
    assert (hf / "generation_config.json").read_text() == "{}"
    assert not (hf / "secrets.txt").exists()


def test_a_link_out_of_the_source_is_not_followed(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    (tmp_path / "private").write_text("x")
    (source / "tokenizer.json").symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        converted(source, "b", "hf")


def test_progress_ends_with_everything(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    seen: list[tuple[int, int]] = []
    reader = open_checkpoint(source)
    done = convert(reader, tmp_path / "b", to="hf", progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert sorted(done.files) == sorted(os.listdir(tmp_path / "b"))


@pytest.mark.parametrize(
    ("to", "how", "error", "message"),
    [
        ("gguf", {}, UnknownNameError, "hf, megatron, meta, mistral"),
        ("hf", {"tp": 2}, UsageError, "--tp does not apply to --to hf"),
        ("megatron", {"shards": 2}, UsageError, "use --tp and --pp"),
        ("mistral", {"shards": 2}, UsageError, "--shards does not apply"),
        ("hf", {"embedding_split": "vocab"}, UsageError, "--embedding_split does not apply"),
        ("hf", {"shards": 1000}, UsageError, "exceeds the 39 tensors"),
        ("meta", {"shards": 3}, UsageError, "--shards 3 cannot share.*use 1 or 2 or 4 or 8"),
        ("meta", {"shards": 101}, UsageError, "two digits"),
        ("megatron", {"tp": 3}, UsageError, "--tp 3 does not divide the 8 heads.*1 or 2"),
        ("megatron", {"tp": 8}, UsageError, "the 4 KV heads of the model; use 1 or 2 or 4"),
        ("megatron", {"pp": 3}, UsageError, "--pp 3 does not divide the 4 layers.*1 or 2 or 4"),
    ],
)
def test_what_cannot_be_cut_so_is_refused(
    tmp_path: Path, to: str, how: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    with pytest.raises(error, match=message):
        converted(source, "b", to, **how)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("changes", "to", "message"),
    [
        ({"sliding_window": 8}, "meta", r"a sliding window\. Possible: --to hf"),
        ({"sliding_window": 8}, "megatron", "a sliding window"),
        ({"attention_bias": True}, "mistral", "biases"),
        ({"attention_bias": True}, "meta", "biases"),
        ({"attention_bias": True}, "megatron", "only its attention or only its feed-forward"),
        ({"head_dim": 8}, "meta", "head_dim 8 is not dim / n_heads"),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], to: str, message: str
) -> None:
    config = tiny_config(rope_style="half", **changes)
    source = write_hf(tmp_path / "a", config, random_model(config), is_half=True)
    with pytest.raises(UsageError, match=message):
        converted(source, "b", to)


@pytest.mark.parametrize("to", ["meta", "mistral"])
def test_gpt2_has_two_formats(tmp_path: Path, to: str) -> None:
    config = tiny_gpt2_config()
    source = write_hf(tmp_path / "a", config, random_gpt2(config))
    with pytest.raises(UsageError, match=r"learned positions.*--to hf, --to megatron"):
        converted(source, "b", to)


def test_windows_that_differ_between_layers_fit_mistral_alone(tmp_path: Path) -> None:
    config = tiny_config(sliding_window=(8, None))
    source = write_mistral(tmp_path / "a", config, random_model(config))
    with pytest.raises(UsageError, match="differ between layers"):
        converted(source, "b", "hf")
    again = converted(source, "c", "mistral")
    assert open_checkpoint(again).config.sliding_window == (8, None)


def test_the_source_is_never_the_destination(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    (tmp_path / "link").symlink_to(source)
    reader = open_checkpoint(source)
    for place in (source, tmp_path / "link", tmp_path):
        with pytest.raises(UsageError, match="is or holds the source"):
            convert(reader, place, to="hf", overwrite=True)
    assert_same(tensors_of(source), random_model(GROUPED))


def test_a_broken_source_leaves_nothing(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "a", replace(GROUPED, rope_style="half"), random_model(GROUPED))
    reader = open_checkpoint(source)
    os.truncate(source / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends at byte"):
        convert(reader, tmp_path / "b", to="meta")
    assert os.listdir(tmp_path) == ["a"]


def test_the_command_writes_and_can_be_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    line = ["convert", str(source), str(tmp_path / "b"), "--to", "meta", "--shards", "2"]
    assert main([*line, "--dtype", "bfloat16", "--embedding_split", "vocab"]) == 0
    assert f"wrote {tmp_path / 'b'}: 4 files" in capsys.readouterr().err
    verify(tmp_path / "b", ["consolidated.00.pth", "consolidated.01.pth", "params.json"])
    assert main(line) == 64
    assert "is not empty; give another folder, or --overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0
    assert_same(tensors_of(tmp_path / "b"), random_model(GROUPED))


SLOW_CONVERSION = """
import sys, time
from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert

def wait(done, total):
    if done > total // 2:
        print("half", flush=True)
        time.sleep(600)

convert(open_checkpoint(sys.argv[1]), sys.argv[2], to=sys.argv[3], progress=wait)
"""


@pytest.mark.parametrize("to", ["meta", "hf"])
def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path: Path, to: str) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    running = _start(SLOW_CONVERSION, source, tmp_path / "b", to)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "half\n"
        (partial,) = tmp_path.glob(".b.partial-*")
        converted(source, "b", "hf")  # another run leaves alone what still lives
        assert partial.exists()
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=DEADLINE_S)
    assert sorted(os.listdir(tmp_path)) == sorted(["a", "b", partial.name])
    converted(source, "b", "hf", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert_same(tensors_of(converted(tmp_path / "b", "c", "meta")), random_model(GROUPED))


MEASURED_CONVERSION = """
import sys, torch
from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert
from llama.checkpoint.writers.source import Options

def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

before = peak_bytes()
reader = open_checkpoint(sys.argv[1])
to = sys.argv[3]
shards = 2 if to == "meta" else None
convert(reader, sys.argv[2], to=to, options=Options(shards=shards))
print(peak_bytes() - before, max(tensor.nbytes for tensor in reader.tensors.values()))
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    "to",
    ["meta", "hf", "megatron"],
)
def test_memory_stays_below_the_largest_tensor_and_300_mb(tmp_path: Path, to: str) -> None:
    config = tiny_config(
        dim=1024, n_heads=8, head_dim=128, ffn_dim=4096, n_layers=10, vocab_size=1024
    )
    source = tmp_path / "a"
    _write_sparse(source, replace(config, rope_style="half"))
    running = _start(MEASURED_CONVERSION, source, tmp_path / "b", to)
    out, _ = running.communicate(timeout=DEADLINE_S)
    peak_bytes, largest_bytes = map(int, out.split())
    assert sum(p.stat().st_size for p in source.iterdir()) > 2 * (largest_bytes + 300e6)
    assert peak_bytes <= largest_bytes + 300e6


@pytest.mark.parametrize("to", ["meta", pytest.param("hf", marks=pytest.mark.nightly)])
def test_a_full_disk_is_told_by_name(tmp_path: Path, to: str) -> None:
    source = write_meta(tmp_path / "a", GROUPED, random_model(GROUPED))
    line = [sys.executable, "-m", "llama", "convert", source, tmp_path / "b", "--to", to]
    run = subprocess.run(
        line,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert run.returncode == 74, run.stderr
    assert "llama: error: cannot write" in run.stderr
    assert ("File too large" if to == "hf" else "limit") in run.stderr
    assert os.listdir(tmp_path) == ["a"]


def _start(program: str, source: Path, place: Path, to: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, source, place, to],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _write_sparse(path: Path, config: Any) -> None:
    """A Mistral folder of zeros that take no room on the disk."""
    path.mkdir()
    params = params_of(config) | {"vocab_size": config.vocab_size}
    (path / "params.json").write_text(json.dumps(params))
    header, end = {}, 0
    for name, shape in expected_shapes(config).items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path / "consolidated.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_ids_of_special_tokens_survive_a_format_that_has_no_place_for_them(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "a", tiny_config(), random_model(tiny_config()))
    ids = {"bos_token_id": 5, "eos_token_id": [6, 7]}
    (source / "generation_config.json").write_text(json.dumps(ids))
    converted(source, "b", "mistral")
    again = converted(tmp_path / "b", "c", "hf")
    spelled = json.loads((again / "config.json").read_text())
    assert {key: spelled[key] for key in ids} == ids


def test_verify_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_hf(tmp_path / "a", tiny_config(), random_model(tiny_config()))
    line = ["convert", str(source), str(tmp_path / "b"), "--to", "meta", "--verify"]
    assert main(line) == 65
    assert "--write_manifest" in capsys.readouterr().err
    assert main(["inspect", str(source), "--write_manifest"]) == 0
    assert main(line) == 0
