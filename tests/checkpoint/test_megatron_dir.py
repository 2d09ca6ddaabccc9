"""Which files make a Megatron checkpoint, and what is said when they do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.megatron import MEGATRON
from tests.helpers.gpt2_weights import random_gpt2
from tests.helpers.megatron_files import write_megatron
from tests.helpers.megatron_models import GPT2, GPT2_WEIGHTS, ITERATION, assert_reads, message_of


@pytest.mark.parametrize("inside", ["", "iter_0001000"])
def test_the_folder_of_an_iteration_may_be_given(inside: str, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2)
    if inside:
        (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    assert_reads(open_checkpoint(tmp_path / inside), GPT2, GPT2_WEIGHTS)


def test_the_tracker_says_which_iteration(tmp_path: Path) -> None:
    other = random_gpt2(GPT2, seed=1)
    write_megatron(tmp_path, GPT2, other, iteration=2000)
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, iteration=1000)
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2000\n")
    assert_reads(open_checkpoint(tmp_path), GPT2, other)
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, iteration=None)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


def test_a_distributed_optimizer_beside_the_models(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2, file_name="model_rng.pt")
    for name in ("mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_000_001"):
        folder = tmp_path / "iter_0001000" / name
        folder.mkdir()
        torch.save({"optimizer": {}}, folder / "optim.pt")
    assert_reads(open_checkpoint(tmp_path), GPT2, GPT2_WEIGHTS)


@pytest.mark.parametrize("rank", ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_01_001"])
def test_a_missing_rank_is_named(rank: str, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2, pp=2)
    shutil.rmtree(tmp_path / ITERATION / rank)
    message = message_of(tmp_path)
    assert f"{rank} missing in {tmp_path / ITERATION}" in message
    assert "4 rank folders needed (tp 2 x pp 2), 3 found" in message


@pytest.mark.parametrize("rank", ["mp_rank_01", "mp_rank_03"])
def test_a_missing_tensor_rank_is_named_without_arguments(rank: str, tmp_path: Path) -> None:
    (tmp_path / "megatron_args.json").write_text('{"num_attention_heads": 4}')
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=4, with_args=False)
    shutil.rmtree(tmp_path / ITERATION / rank)
    message = message_of(tmp_path)
    assert f"{rank} missing" in message
    assert "4 rank folders needed (tp 4 x pp 1), 3 found" in message


def test_missing_last_stages_are_found_without_arguments(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, pp=4, with_args=False)
    shutil.rmtree(tmp_path / ITERATION / "mp_rank_00_003")
    message = message_of(tmp_path)
    assert "3 rank folders found (tp 1 x pp 3), but none holds the final norm" in message


def test_a_rank_too_many_is_named(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, tp=2)
    shutil.copytree(tmp_path / ITERATION / "mp_rank_01", tmp_path / ITERATION / "mp_rank_02")
    assert "but 2 make the model (tp 2 x pp 1); move mp_rank_02 away" in message_of(tmp_path)


@pytest.mark.parametrize("text", ["", "-1", "../../etc", "1e3", "\u0661", "9" * 40, "release\0"])
def test_a_tracker_that_says_nothing(text: str, tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text, encoding="utf-8")
    assert str(tmp_path / "latest_checkpointed_iteration.txt") in message_of(tmp_path)


def test_a_tracker_that_says_too_much(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1" * 1000)
    assert "has 1,000 bytes; it should hold one number" in message_of(tmp_path)


def test_an_iteration_that_is_gone(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    message = message_of(tmp_path)
    assert "says 5, but there is no folder iter_0000005; found: iter_0001000" in message


def test_several_iterations_without_a_tracker(tmp_path: Path) -> None:
    for iteration in (1, None):
        write_megatron(tmp_path, GPT2, GPT2_WEIGHTS, iteration=iteration)
    (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    assert "holds iter_0000001, release but no latest_checkpointed" in message_of(tmp_path)


def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ITERATION).mkdir()
    for name in (".metadata", "metadata.json", "common.pt", "__0_0.distcp"):
        (tmp_path / ITERATION / name).touch()
    assert MEGATRON.recognises(tmp_path)
    assert MEGATRON.recognises(tmp_path / ITERATION)
    for folder in (tmp_path, tmp_path / ITERATION):
        assert "torch_dist" in message_of(folder)
        assert "--ckpt-convert-format torch" in message_of(folder)


def test_a_folder_of_torch_dcp_is_left_to_its_reader(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp", "one.pt"):
        (tmp_path / name).touch()
    assert not MEGATRON.recognises(tmp_path)


def test_expert_parallel_folders(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    ranks = tmp_path / ITERATION
    shutil.move(ranks / "mp_rank_00", ranks / "mp_rank_00_000_000")
    assert MEGATRON.recognises(tmp_path)
    assert "is of an expert-parallel checkpoint" in message_of(tmp_path)


def test_one_rank_twice(tmp_path: Path) -> None:
    write_megatron(tmp_path, GPT2, GPT2_WEIGHTS)
    ranks = tmp_path / ITERATION
    shutil.copytree(ranks / "mp_rank_00", ranks / "mp_rank_00_000")
    assert "are the same rank; move one of them away" in message_of(tmp_path)


def test_folders_without_files(tmp_path: Path) -> None:
    (tmp_path / "iter_0000001" / "mp_rank_00").mkdir(parents=True)
    assert MEGATRON.recognises(tmp_path)
    assert "Megatron's format needs mp_rank_00/model_optim_rng.pt" in message_of(tmp_path)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("inside", ["", "mp_rank_01", "mp_rank_01/model_optim_rng.pt"])
def test_no_link_may_lead_out_of_the_folder(inside: str, tracked: bool, tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "model", GPT2, GPT2_WEIGHTS, tp=2)
    if not tracked:
        (folder / "latest_checkpointed_iteration.txt").unlink()
    linked = folder / ITERATION / inside
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    message = message_of(folder)
    assert (
        f"{linked} is a link that leads out of its folder, to {tmp_path / 'elsewhere'}" in message
    )


def test_a_bare_file_may_not_lead_out_either(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "model", GPT2, GPT2_WEIGHTS, bare=True)
    (file,) = folder.glob("*.pt")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert f"{file} is a link that leads out of its folder" in message_of(folder)
    (tmp_path / "elsewhere").rename(folder / "weights")
    file.unlink()
    file.symlink_to("weights")
    assert_reads(open_checkpoint(folder), GPT2, GPT2_WEIGHTS)
