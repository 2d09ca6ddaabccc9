"""Bad input gets a typed error on every rank, which says what, where and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.bad_builds import BUILDS, LLM_BUILDS, NO_GPU, Builds
from tests.helpers.bad_inputs import same_answers, walk
from tests.helpers.programs import run
from tests.helpers.ranks import RankInfo, run_ranks
from tests.helpers.refusals import FACES, build, caught, write_files

pytestmark = pytest.mark.slow

OPTIMISED = {"PYTHONOPTIMIZE": "1"}
DEADLINE_S = 100.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


# Errors that are caught -------------------------------------------------------------------------


def needs_one_rank(builds: Builds) -> Builds:
    return {name: case for name, case in builds.items() if not {"tp", "pp"} & case[0].keys()}


@pytest.mark.parametrize("face", FACES)
def test_one_process(files: Path, face: str) -> None:
    cases = BUILDS | (LLM_BUILDS if face == "LLM" else {})
    for name, (changes, refusal) in needs_one_rank(cases).items():
        seen = caught(lambda: build(files, face, **changes))  # noqa: B023
        assert refusal.fits(seen), f"{name}: {seen} is not {refusal}"
    kind, message = caught(lambda: build(files, face, tp=2))
    assert kind == "UsageError" and "does not divide the world size 1" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", NO_GPU)
def test_one_process_without_a_gpu(files: Path, name: str) -> None:
    changes, refusal = NO_GPU[name]
    assert refusal.fits(caught(lambda: build(files, "LLM", **changes)))


def test_a_wrong_folder_is_the_error_when_the_tokenizer_is_left_open(files: Path) -> None:
    kind, message = caught(lambda: LLM(files / "nowhere"))
    assert kind == "CheckpointError" and "nowhere does not exist" in message


def walk_in_a_group(info: RankInfo, files: Path) -> dict[str, str]:
    """All cases over a process group that the program has made."""
    info.init_process_group()
    return walk(files, info.rank)


@pytest.mark.nightly
def test_every_rank_refuses_all_bad_input_alike(files: Path) -> None:
    assert run_ranks(walk_in_a_group, 2, files) == [{}, {}]


def test_launched_ranks_refuse_all_bad_input_alike_without_asserts(
    files: Path, tmp_path: Path
) -> None:
    """Here every build makes the process group itself, and must have given it back."""
    words = ["-O", "-m", "launch", "--nproc", "2", "-m", "tests.helpers.bad_inputs"]
    done = run([*words, str(files), str(tmp_path)], env=OPTIMISED, deadline_s=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert reports == [{"optimised": True, "wrong": {}}] * 2


def build_again(info: RankInfo, files: Path) -> list[Any]:
    info.init_process_group()
    llama, llm = build(files, "Llama", tp=2), build(files, "LLM", tp=2)
    assert isinstance(llama, Llama) and isinstance(llm, LLM)
    other_layout = caught(lambda: build(files, "Llama", tp=1, pp=2))
    alike = same_answers(llama, llm)
    llama.model.engine.context.close()
    llm.context.close()
    return [alike, other_layout, caught(lambda: build(files, "Llama", tp=1, pp=2))]


def test_a_second_build(files: Path) -> None:
    """The same layout shares the groups; another one needs those of the first to be gone."""
    for alike, other_layout, after_close in run_ranks(build_again, 2, files):
        assert alike
        assert other_layout[0] == "UsageError"
        assert "tp_size 1 x pp_size 2 needs size 1" in other_layout[1]
        assert "ask for the sizes of the groups that exist" in other_layout[1]
        assert after_close == ("", "")
