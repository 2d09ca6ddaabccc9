"""Which cases a command line picks, and who is in them."""

from __future__ import annotations

import pytest

from llama.bench.bars import all_bars
from llama.bench.cases import CPU_CASES, GPU_CASES, cases
from llama.bench.contestant import Contestant
from llama.errors import UnknownNameError, UsageError


@pytest.mark.parametrize("n_cores", [1, 2, 3, 4, 16])
def test_no_two_contestants_of_a_case_have_the_same_name(n_cores: int) -> None:
    for case in cases(device="cpu", n_cores=n_cores):
        names = [contestant.name for contestant in case.contestants]
        assert len(set(names)) == len(names), case.name


@pytest.mark.parametrize(("device", "n_cores"), [("cpu", 1), ("cpu", 2), ("cpu", 8), ("cuda", 8)])
def test_every_bar_is_of_contestants_and_works_that_are_measured(device: str, n_cores: int) -> None:
    found = {case.name: case for case in cases(device=device, n_cores=n_cores)}
    for bar in all_bars(n_cores, device=device):
        case = found[bar.case]
        assert bar.shape == case.shape.name
        assert bar.ours in case.contestants
        assert not isinstance(bar.against, Contestant) or bar.against in case.contestants
        assert bar.metric.split()[0] in [work.name for work in case.works]


def test_all_cases_of_the_device_by_default() -> None:
    assert [case.name for case in cases(device="cpu", n_cores=2)] == list(CPU_CASES)
    assert [case.name for case in cases(device="cuda", n_cores=2)] == list(GPU_CASES)


def test_dtype_and_quantize_pick_among_us_and_leave_the_peers() -> None:
    (case,) = cases(device="cpu", n_cores=2, only="half", dtype="float16")
    assert {one.dtype for one in case.contestants if one.engine == "llama"} == {"float16"}
    assert {one.engine for one in case.contestants} == {"llama", "llama.cpp", "transformers"}
    (case,) = cases(device="cpu", n_cores=2, quantize="int8")
    assert case.name == "quantized"


def test_the_shape_takes_the_place_of_the_cases_own() -> None:
    found = cases(device="cpu", n_cores=2, shape="tiny")
    assert {case.shape.name for case in found} == {"tiny"}


def test_quick_is_one_round_of_cheap_cases() -> None:
    found = cases(device="cpu", n_cores=2, is_quick=True)
    assert {case.shape.name for case in found} == {"110m"}
    assert {case.most_rounds for case in found} == {1}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown case 'fp32'; known: float32, half"):
        cases(device="cpu", n_cores=2, only="fp32")
    with pytest.raises(UnknownNameError, match="unknown shape '13b'"):
        cases(device="cpu", n_cores=2, shape="13b")
    with pytest.raises(UsageError, match="no case measures us with dtype float64"):
        cases(device="cpu", n_cores=2, dtype="float64")
