"""`llama plan` as it is typed: what it prints, in words and as JSON, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.cli import main
from llama.cli.plan import parse_bytes
from llama.errors import UsageError
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.programs import run

pytestmark = pytest.mark.slow

MODEL = tiny_config(n_layers=4, n_kv_heads=2, vocab_size=3000)
SMALL = ("--max_seq_len", "64", "--max_batch_size", "2")


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plan") / "ckpt"
    return str(write_meta(folder, MODEL, random_model(MODEL), n_files=2, dtype=torch.bfloat16))


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `llama plan words...`."""
    status = main(["plan", *words])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    status, out, err = plan(capsys, *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_table_with_a_line_a_rank(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = plan(capsys, ckpt_dir, "--tp", "2", "--pp", "2", "--gpu_memory", "1GB")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "tp 2 x pp 2 (4 ranks), as asked"
    assert lines[1].endswith("steps of at most 2048, bfloat16 on cuda")
    columns = lines[3].split("  ")
    for name in ("rank", "layers", "KV heads", "weights", "KV cache", "activations", "total"):
        assert name in [column.strip() for column in columns], lines[3]
    ranks = [line.split() for line in lines[4:8]]
    assert [rank[0] for rank in ranks] == ["0", "1", "2", "3"]
    assert [rank[2] for rank in ranks] == ["0-2", "0-2", "3", "3"]
    assert [rank[4] for rank in ranks] == ["0", "1", "0", "1"]
    assert "fits: each rank has 953.7 MiB" in out
    assert "\x1b" not in out


def test_json_has_the_exact_numbers(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--max_seq_len", "100", "--max_batch_size", "3")
    whole = planned(capsys, ckpt_dir, "--gpu_memory", "1GB", *sizes)
    assert (whole["tp_size"], whole["pp_size"], whole["dtype"]) == (1, 1, "bfloat16")
    assert whole["fits"] and whole["fits_full_batch"] and whole["memory_bytes"] == 10**9
    (rank,) = whole["ranks"]
    weights = sum(weight.numel() for weight in random_model(MODEL).values())
    assert rank["weight_bytes"] == 2 * weights + 2 * 100 * 2 * 4
    assert rank["kv_cache_bytes"] == 3 * 7 * 16 * 4 * 2 * 2 * 4 * 2  # blocks, layers, K and V
    assert rank["total_bytes"] == (
        rank["weight_bytes"] + rank["kv_cache_bytes"] + rank["activation_bytes"]
    )
    assert rank["read_bytes"] == 2 * weights
    assert (rank["collectives_per_token"], rank["bytes_per_token"]) == (0, 0)
    split = planned(capsys, ckpt_dir, "--tp", "2", "--gpu_memory", "1GB", *sizes)
    assert [r["read_bytes"] for r in split["ranks"]] == [weights, weights]
    assert split["ranks"][0]["collectives_per_token"] == 2 * 4 + 1 + 1


def test_on_a_cpu_the_memory_is_what_is_free_shared_by_the_ranks(
    ckpt_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = planned(capsys, ckpt_dir, "--device", "cpu")
    four = planned(capsys, ckpt_dir, "--device", "cpu", "--tp", "2", "--pp", "2")
    assert one["dtype"] == four["dtype"] == "float32"
    assert four["memory_bytes"] == pytest.approx(one["memory_bytes"] / 4, rel=0.2)
    half = planned(capsys, ckpt_dir, "--device", "cpu", "--dtype", "bfloat16")
    assert half["ranks"][0]["kv_cache_bytes"] * 2 == one["ranks"][0]["kv_cache_bytes"]


def test_auto_says_why(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    auto = ("--tp", "auto", "--pp", "auto")
    four = planned(capsys, ckpt_dir, *auto, "--nproc", "4")
    assert (four["tp_size"], four["pp_size"]) == (2, 2)
    assert four["reason"] == "tp 2 x pp 2 (4 ranks); tp 4 would copy KV heads"
    one = planned(capsys, ckpt_dir, *auto, "--device", "cpu")
    assert one["reason"] == "tp 1 x pp 1 (1 rank); one process uses all cores of this host"
    fewest = planned(capsys, ckpt_dir, *auto, "--gpu_memory", "20MB")
    assert fewest["tp_size"] * fewest["pp_size"] > 1 and fewest["fits_full_batch"]


def test_all_layouts(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    every = planned(capsys, ckpt_dir, "--all", "--gpu_memory", "1GB")["layouts"]
    sizes = [(option["tp_size"], option["pp_size"]) for option in every]
    expected = [(n // pp, pp) for n in range(1, 9) for pp in range(1, n + 1) if n % pp == 0]
    assert sizes == expected
    refused = {size: o["refused"] for size, o in zip(sizes, every, strict=True) if "refused" in o}
    assert set(refused) == {(1, 5), (1, 6), (1, 7), (1, 8)}
    assert refused[1, 8] == "pp_size 8 exceeds n_layers 4; use at most 4"
    four = planned(capsys, ckpt_dir, "--all", "--nproc", "4", "--gpu_memory", "1GB")["layouts"]
    assert four == [
        option for option, size in zip(every, sizes, strict=True) if size[0] * size[1] == 4
    ]
    status, out, _ = plan(capsys, ckpt_dir, "--all", "--gpu_memory", "1GB")
    assert status == 0 and len(out.splitlines()) == 3 + len(every)
    assert "would copy KV heads" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tp", "2"], [(2, 1), (2, 2), (2, 3), (2, 4)]),
        (["--pp", "3"], [(1, 3), (2, 3)]),
        (["--tp", "auto", "--pp", "2", "--nproc", "8"], [(4, 2)]),
        (["--tp", "2", "--pp", "2"], [(2, 2)]),
    ],
)
def test_all_layouts_of_a_size(
    words: list[str],
    expected: list[tuple[int, int]],
    ckpt_dir: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = planned(capsys, ckpt_dir, "--all", "--gpu_memory", "1GB", *words)["layouts"]
    assert [(option["tp_size"], option["pp_size"]) for option in found] == expected


def test_a_smaller_cache_is_said(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--max_seq_len", "512", "--max_num_batched_tokens", "64")
    status, out, err = plan(capsys, ckpt_dir, "--gpu_memory", "3MB", *sizes)
    assert (status, err) == (0, "")
    assert "fits with a smaller KV cache" in out and "of the 1024 KV blocks" in out


def test_what_does_not_fit_ends_with_71(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = plan(capsys, ckpt_dir, "--gpu_memory", "1200kB", *SMALL)
    assert status == 71
    assert "does not fit: each rank has 1.1 MiB, " in out
    assert err.startswith("llama: error: tp 1 x pp 1 (1 rank) does not fit: rank 0 needs 1.")
    assert "and has 1.1 MiB (" in err and "layouts that would: tp 2 x pp 1 (2 ranks)" in err
    status, out, err = plan(capsys, ckpt_dir, "--all", "--gpu_memory", "10kB")
    assert status == 71 and "no layout of up to 64 ranks would" in err
    assert json.loads(plan(capsys, ckpt_dir, "--gpu_memory", "1kB", "--json")[1])["fits"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu_memory", "80XB"], "--gpu_memory cannot be '80XB'; it is a size such as 80GB"),
        (["--gpu_memory", "0"], "--gpu_memory cannot be '0'"),
        (["--tp", "0"], "--tp must be at least 1, got 0"),
        (["--tp", "some"], "--tp cannot be 'some'"),
        (["--tp", "16"], "tp_size 16 exceeds n_heads 8; use at most 8"),
        (["--pp", "5"], "pp_size 5 exceeds n_layers 4; use at most 4"),
        (["--tp", "3", "--nproc", "4"], "does not divide the world size 4"),
        (["--tp", "3", "--pp", "auto", "--nproc", "4"], "no layout with tp 3 and pp auto"),
        (["--max_seq_len", "0"], "max_seq_len must be an integer of at least 1"),
        (["--max_batch_size", "-1"], "max_batch_size must be an integer of at least 1"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--device", "tpu"], "--device cannot be 'tpu'"),
        (["--device", "cpu", "--gpu_memory", "80GB"], "it does not go with cpu"),
        (["--all", "--tp", "9"], "no layout of 1 to 8 ranks has tp 9"),
    ],
)
def test_nonsense_ends_with_64(
    ckpt_dir: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = plan(capsys, ckpt_dir, *words)
    assert (status, out) == (64, "")
    assert message in err and err.count("\n") == 1


def test_a_folder_without_a_checkpoint_ends_with_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(capsys, str(tmp_path))[0] == 65


def test_as_a_process(ckpt_dir: str) -> None:
    done = run(["-m", "llama", "plan", ckpt_dir, "--gpu_memory", "1MB"])
    assert done.returncode == 71
    assert done.stdout and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("80GiB", 80 * 2**30),
        ("80 gb", 80 * 10**9),
        ("1.5G", 15 * 10**8),
        ("24000MB", 24 * 10**9),
        ("512Mi", 2**29),
        ("1TiB", 2**40),
        (" 1000 B ", 1000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "0", "0.0001kB", "1e9", "80G B", "80GBB", "nan", "inf", "8٣", "9" * 40],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="it is a size such as 80GB or 24GiB"):
        parse_bytes(text)
