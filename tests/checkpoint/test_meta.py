"""Meta's format in any number of files: whole tensors come out, contradictions are named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.meta import META
from llama.checkpoint.reader import CheckpointReader
from llama.config import RopeScaling
from llama.errors import CheckpointError, UnknownNameError, UsageError
from tests.helpers.checkpoints import meta_file, random_model, tiny_config, write_meta

ROOT = Path(__file__).parents[2]
MHA = tiny_config()
GQA = tiny_config(n_kv_heads=2)
WEIGHTS = random_model(MHA)


def read(reader: CheckpointReader, name: str) -> Tensor:
    info = reader.tensors[name]
    out = torch.empty(info.shape, dtype=info.dtype)
    assert reader.read_into(out, name) == out.nbytes
    return out


def edit_params(folder: Path, **changes: Any) -> None:
    """Set keys of params.json; None removes one."""
    path = folder / "params.json"
    params = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in params.items() if value is not None}))


def edit_file(folder: Path, number: int, **tensors: Tensor | None) -> None:
    """Set tensors of one file, dots written as two underscores; None removes one."""
    path = folder / f"consolidated.{number:02d}.pth"
    held = torch.load(path, weights_only=True)
    held |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    torch.save({name: tensor for name, tensor in held.items() if tensor is not None}, path)


def message_of(folder: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("embedding_split", [0, 1])
@pytest.mark.parametrize("n_files", [1, 2, 4, 8])
def test_any_number_of_files_is_the_same_model(
    n_files: int, embedding_split: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    write_meta(
        tmp_path, MHA, WEIGHTS, n_files=n_files, embedding_split=embedding_split, dtype=dtype
    )
    reader = open_checkpoint(tmp_path)
    assert reader.config == MHA
    assert list(reader.tensors) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        assert reader.tensors[name].shape == weight.shape
        assert torch.equal(read(reader, name), weight.to(dtype)), name
    assert set(reader.ignored) == {"rope.freqs"}
    reader.close()


def file_names(reader: CheckpointReader, name: str) -> list[str]:
    return [path.name for path in reader.tensors[name].paths]


def test_three_files(tmp_path: Path) -> None:
    config = tiny_config(dim=36, n_heads=6, n_kv_heads=3, vocab_size=66)
    weights = random_model(config)
    reader = open_checkpoint(write_meta(tmp_path, config, weights, n_files=3, embedding_split=1))
    assert all(torch.equal(read(reader, name), weight) for name, weight in weights.items())
    files = [f"consolidated.0{n}.pth" for n in range(3)]
    assert file_names(reader, "output.weight") == files
    assert file_names(reader, "norm.weight") == files[:1]


def test_scaled_rope_and_biases(tmp_path: Path) -> None:
    config = tiny_config(
        attention_bias=True,
        mlp_bias=True,
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor=4.0, high_freq_factor=2.0),
    )
    weights = random_model(config)
    reader = open_checkpoint(write_meta(tmp_path, config, weights, n_files=4))
    assert reader.config == config
    assert all(torch.equal(read(reader, name), weight) for name, weight in weights.items())
    assert "layers.2.feed_forward.w2.bias" in weights


@pytest.mark.parametrize("n_files", [4, 8])
def test_copied_kv_heads_are_read_once(n_files: int, tmp_path: Path) -> None:
    weights = random_model(GQA)
    reader = open_checkpoint(write_meta(tmp_path, GQA, weights, n_files=n_files))
    assert reader.config == GQA
    assert all(torch.equal(read(reader, name), weight) for name, weight in weights.items())
    assert file_names(reader, "layers.0.attention.wk.weight") == [
        "consolidated.00.pth",
        f"consolidated.{n_files // 2:02d}.pth",
    ]


def test_copied_kv_heads_that_are_missing_are_named(tmp_path: Path) -> None:
    weights = random_model(GQA)
    del weights["layers.0.attention.wk.weight"]
    message = message_of(write_meta(tmp_path, GQA, weights, n_files=4))
    assert "lacks 1 of the 30 tensors of its model: layers.0.attention.wk.weight" in message


def test_copies_that_are_no_copies_are_named(tmp_path: Path) -> None:
    other = torch.randn(4, 32)
    write_meta(tmp_path, GQA, random_model(GQA), n_files=4)
    edit_file(tmp_path, 3, layers__0__attention__wk__weight=other)
    assert "consolidated.02.pth and consolidated.03.pth hold the same KV head" in (
        message_of(tmp_path)
    )


def test_kv_heads_that_params_counts_as_copies_stay_copies(tmp_path: Path) -> None:
    """Llama 3.1 405B in 16 files: 8 heads, stored twice, and n_kv_heads 16."""
    weights = random_model(GQA)
    write_meta(tmp_path, GQA, weights, n_files=4, params_extra={"n_kv_heads": 4})
    reader = open_checkpoint(tmp_path)
    assert reader.config == replace(GQA, n_kv_heads=4)
    for name in ("layers.1.attention.wk.weight", "layers.1.attention.wv.weight"):
        heads = weights[name].chunk(2)
        assert torch.equal(read(reader, name), torch.cat([heads[0]] * 2 + [heads[1]] * 2))


def test_rope_tables_of_every_layer_are_ignored(tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS)
    tables = {
        f"layers__{n}__attention__inner_attention__rope__freqs": torch.ones(2) for n in range(3)
    }
    edit_file(tmp_path, 0, **tables)
    reader = open_checkpoint(tmp_path)
    assert len(reader.ignored) == 4
    assert set(reader.tensors) == set(WEIGHTS)


def test_formulas_instead_of_sizes(tmp_path: Path) -> None:
    """A params.json in Meta's own words: no head_dim or hidden_dim, vocabulary in the file."""
    params = {"head_dim": None, "hidden_dim": None, "multiple_of": 48, "vocab_size": 64}
    write_meta(
        tmp_path, MHA, WEIGHTS, n_files=2, params_extra={**params, "ffn_dim_multiplier": 0.5}
    )
    assert open_checkpoint(tmp_path).config == MHA


@pytest.mark.parametrize("missing", range(8))
def test_one_missing_file_of_eight_is_named(missing: int, tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS, n_files=8)
    (tmp_path / f"consolidated.{missing:02d}.pth").unlink()
    message = message_of(tmp_path)
    assert f"consolidated.{missing:02d}.pth is missing in {tmp_path}" in message
    assert "8 files expected" in message
    assert "7 found" in message


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS, n_files=8)
    for number in (0, 1, 5, 7):
        (tmp_path / f"consolidated.{number:02d}.pth").unlink()
    names = ", ".join(f"consolidated.0{number}.pth" for number in (0, 1, 5, 7))
    assert f"{names} are missing" in message_of(tmp_path)


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS, n_files=2)
    for number in (2, 5):
        content = (tmp_path / "consolidated.00.pth").read_bytes()
        (tmp_path / f"consolidated.0{number}.pth").write_bytes(content)
    assert "move consolidated.02.pth, consolidated.05.pth away" in message_of(tmp_path)


def test_folders_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, other, file = tmp_path / "empty", tmp_path / "other", tmp_path / "file"
    empty.mkdir()
    other.mkdir()
    file.touch()
    for number in range(7):
        (other / f"model{number}.bin").touch()
    assert f"no checkpoint files found in {empty}" in message_of(empty)
    assert "it holds model0.bin, model1.bin, model2.bin, model3.bin, model4.bin, ..." in (
        message_of(other)
    )
    assert f"{file} is a file; give the folder that holds it" in message_of(file)
    assert f"folder {tmp_path / 'none'} does not exist" in message_of(tmp_path / "none")
    write_meta(tmp_path, MHA, WEIGHTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="ckpt_dir is empty"):
        open_checkpoint("")
    assert "checkpoint folder" in message_of("a\0b")


def test_a_format_can_be_demanded(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown checkpoint format 'gguf'; known: dcp"):
        open_checkpoint(tmp_path, format="gguf")
    with pytest.raises(CheckpointError, match=r"params\.json: No such file"):
        open_checkpoint(tmp_path, format="meta")
    write_meta(tmp_path, MHA, WEIGHTS)
    assert open_checkpoint(str(tmp_path) + "/", format="meta").config == MHA
    (tmp_path / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint files found"):
        open_checkpoint(tmp_path, format="meta")


CONTRADICTIONS = {
    "dim": ({"dim": 64}, "norm.weight has shape (32,), but params.json gives dim 64"),
    "n_heads": ({"n_heads": 5}, "wq.weight has shape (16, 32), but params.json asks for 20 rows"),
    "head_dim": (
        {"head_dim": 8},
        "4 files like this make the model of params.json by layers.0.attention.wq.weight, but 2 by "
        "layers.0.feed_forward.w1.weight",
    ),
    "n_kv_heads": (
        {"n_kv_heads": 4},
        "consolidated.00.pth: layers.0.attention.wk.weight has shape (16, 32), but params.json "
        "asks for (8, 32) in each of 2 files (n_kv_heads*head_dim 16, dim 32)",
    ),
    "hidden_dim": (
        {"hidden_dim": 64},
        "layers.0.feed_forward.w1.weight has shape (24, 32), but params.json asks for 64 rows (the "
        "feed-forward width) in all files together",
    ),
    "vocab_size": (
        {"vocab_size": 65},
        "params.json gives vocab_size 65, but the tensors make a vocabulary of 64",
    ),
    "fewer layers": (
        {"n_layers": 2},
        "consolidated.00.pth holds layers.2.attention.wq.weight, which a Llama of 2 layers",
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_params_that_contradict_the_tensors(what: str, tmp_path: Path) -> None:
    changes, expected = CONTRADICTIONS[what]
    edit_params(write_meta(tmp_path, MHA, WEIGHTS, n_files=2), **changes)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("n_kv_heads", "expected"),
    [
        (1, "consolidated.00.pth and consolidated.01.pth hold the same KV head, but their"),
        (2, "3 files cannot share n_kv_heads*head_dim 12"),
        (6, "params.json asks for (12, 36) in each of 3 files"),
    ],
)
def test_three_kv_heads_in_three_files_are_never_taken_for_another_number(
    n_kv_heads: int, expected: str, tmp_path: Path
) -> None:
    config = tiny_config(dim=36, n_heads=6, n_kv_heads=3, vocab_size=66, head_dim=6)
    params = {"n_kv_heads": n_kv_heads}
    write_meta(tmp_path, config, random_model(config), n_files=3, params_extra=params)
    assert expected in message_of(tmp_path)


FILE_FAULTS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "shape": (
        {"output__weight": torch.ones(31, 32)},
        "consolidated.01.pth: output.weight has shape",
    ),
    "other dim": (
        {"norm__weight": torch.ones(31)},
        "consolidated.01.pth: norm.weight has shape (31,)",
    ),
    "dtype": (
        {"layers__1__attention__wo__weight": torch.ones(32, 16, dtype=torch.float16)},
        "layers.1.attention.wo.weight is float32 in consolidated.00.pth, but float16 in "
        "consolidated.01.pth",
    ),
    "lacks one": ({"output__weight": None}, "only one of them has output.weight"),
    "has one more": ({"extra": torch.ones(1)}, "only one of them has extra"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_file_of_another_checkpoint(fault: str, tmp_path: Path) -> None:
    tensors, expected = FILE_FAULTS[fault]
    edit_file(write_meta(tmp_path, MHA, WEIGHTS, n_files=2), 1, **tensors)
    assert expected in message_of(tmp_path)


ONE_FILE_FAULTS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "int8": (
        {"output__weight": torch.ones(64, 32, dtype=torch.int8)},
        "output.weight is stored as int8, but only float16",
    ),
    "vision": ({"vision_model__x": torch.ones(1)}, "holds vision_model.x, which a Llama"),
    "no wq": ({"layers__0__attention__wq__weight": None}, "it is no Llama model; it holds tok_emb"),
    "wq is a scalar": (
        {"layers__0__attention__wq__weight": torch.tensor(1.0)},
        "layers.0.attention.wq.weight has shape (), but params.json asks for 32 rows",
    ),
    "wq is empty": ({"layers__0__attention__wq__weight": torch.ones(0, 32)}, "asks for 32 rows"),
    "wq is a vector": (
        {"layers__0__attention__wq__weight": torch.ones(32)},
        "layers.0.attention.wq.weight has shape (32,), but params.json asks for (32, 32) in the "
        "only file",
    ),
    "no vocabulary": (
        {"output__weight": None, "tok_embeddings__weight": None},
        "has no matrix output.weight or tok_embeddings.weight",
    ),
    "empty head": ({"output__weight": torch.ones(0, 32)}, "vocab_size must be"),
}


@pytest.mark.parametrize("fault", ONE_FILE_FAULTS)
def test_a_file_that_is_no_llama(fault: str, tmp_path: Path) -> None:
    tensors, expected = ONE_FILE_FAULTS[fault]
    edit_file(write_meta(tmp_path, MHA, WEIGHTS), 0, **tensors)
    assert expected in message_of(tmp_path)


@pytest.mark.parametrize("embedding_split", [0, 1])
def test_a_missing_head_is_named(embedding_split: int, tmp_path: Path) -> None:
    headless = {name: weight for name, weight in WEIGHTS.items() if name != "output.weight"}
    write_meta(tmp_path, MHA, headless, n_files=2, embedding_split=embedding_split)
    assert "lacks 1 of the 30 tensors of its model: output.weight" in message_of(tmp_path)


def test_a_broken_later_file_is_found_on_opening(tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS, n_files=2)
    path = tmp_path / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = message_of(tmp_path)
    assert f"{path} is truncated or damaged" in message
    assert f"{path.stat().st_size:,} bytes are there" in message


@pytest.mark.parametrize("key", ["sliding_window", "_sliding_window"])
def test_one_file_of_a_model_with_a_window_is_not_of_this_format(key: str, tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS)
    assert META.recognises(tmp_path)
    (tmp_path / "params.json").write_text("{")
    assert META.recognises(tmp_path)
    edited = tmp_path / "edited"
    edit_params(write_meta(edited, MHA, WEIGHTS), **{key: 16})
    assert not META.recognises(edited)
    assert f"{key} 16 means a sliding attention window, which only Mistral's" in (
        message_of(edited, format="meta")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """Only headers, listings and one row for each file that should hold copies."""
    config = tiny_config(vocab_size=2**15, n_kv_heads=2)  # 4 MiB embedding and head
    write_meta(tmp_path, config, random_model(config), n_files=4)
    before = bytes_read()
    open_checkpoint(tmp_path)
    assert bytes_read() - before < 2**20


def bytes_read() -> int:
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


@pytest.mark.slow
def test_checks_survive_python_without_asserts(tmp_path: Path) -> None:
    write_meta(tmp_path, MHA, WEIGHTS, n_files=2)
    (tmp_path / "consolidated.01.pth").unlink()
    code = (
        "import sys; from llama.checkpoint import open_checkpoint\n"
        "try: open_checkpoint(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-O", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("CheckpointError consolidated.01.pth is missing"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closing_lets_go(tmp_path: Path) -> None:
    reader = open_checkpoint(write_meta(tmp_path, MHA, WEIGHTS))
    descriptors = len(os.listdir("/proc/self/fd"))
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1


def test_the_helper_cuts_as_meta_does() -> None:
    """The writer that all these tests rest on, against numbers worked out by hand."""
    config = tiny_config(
        dim=4, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=2, ffn_dim=2, vocab_size=2
    )
    weights = random_model(config)
    second = meta_file(config, weights, number=1, n_files=2, embedding_split=1)
    assert torch.equal(
        second["layers.0.attention.wq.weight"], weights["layers.0.attention.wq.weight"][2:]
    )
    assert torch.equal(
        second["layers.0.attention.wk.weight"], weights["layers.0.attention.wk.weight"]
    )
    assert torch.equal(
        second["layers.0.attention.wo.weight"], weights["layers.0.attention.wo.weight"][:, 2:]
    )
    assert torch.equal(second["tok_embeddings.weight"], weights["tok_embeddings.weight"][:, 2:])
    assert torch.equal(second["output.weight"], weights["output.weight"][1:])


def test_links_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    weights = random_model(GQA)
    folder = write_meta(tmp_path / "hub" / "model", GQA, weights, n_files=2)
    file = folder / "consolidated.01.pth"
    file.rename(folder / "second")
    file.symlink_to("second")
    assert open_checkpoint(folder).config == GQA
    (folder / "second").rename(tmp_path / "second")
    file.unlink()
    file.symlink_to(tmp_path / "second")
    assert f"{file} is a link that leads out of its folder, to {tmp_path / 'second'}" in message_of(
        folder
    )
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    blob = tmp_path / "hub" / "models--a--b" / "blob"
    (tmp_path / "second").rename(blob)
    (snapshot / file.name).unlink()
    (snapshot / file.name).symlink_to("../../blob")
    assert open_checkpoint(snapshot).config == GQA
