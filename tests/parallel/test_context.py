"""`initialize` in the situations it is called in, on real ranks; and a context by itself."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llama.config import ParallelConfig
from llama.errors import (
    HardwareError,
    LlamaError,
    RankMismatchError,
    UnknownNameError,
    UsageError,
)
from llama.log import get_logger
from llama.parallel.context import ParallelContext, initialize, single
from llama.parallel.layout import ParallelLayout
from llama.parallel.wish import resolve_layout, with_environment
from tests.helpers.ranks import RankInfo, run_layout, run_ranks


@pytest.mark.parametrize(
    ("world", "tp", "pp", "existing", "expected"),
    [
        (1, None, None, None, (1, 1, 1)),
        (8, None, None, None, (8, 1, 1)),  # as Meta: everybody shares every layer
        (8, 2, None, None, (2, 1, 4)),
        (8, None, 2, None, (4, 2, 1)),
        (8, 2, 2, None, (2, 2, 2)),
        (8, None, None, (4, 2), (4, 2, 1)),
        (8, 8, None, (4, 2), (8, 1, 1)),
        (8, None, 4, (4, 2), (2, 4, 1)),
    ],
)
def test_sizes_that_are_left_open(
    world: int,
    tp: int | None,
    pp: int | None,
    existing: tuple[int, int] | None,
    expected: tuple[int, int, int],
) -> None:
    config = ParallelConfig(tp_size=tp, pp_size=pp)
    layout = resolve_layout(config, world_size=world, existing=existing)
    assert layout == ParallelLayout(*expected)


@pytest.mark.parametrize(
    ("world", "sizes", "message"),
    [
        (1, {"tp_size": 2}, "start a multiple of 2 ranks"),
        (2, {"pp_size": 4}, "start a multiple of 4 ranks"),
        (3, {"pp_size": 2}, "does not divide the world size 3"),
        (4, {"tp_size": 0}, "tp_size must be an integer of at least 1"),
        (4, {"pp_size": -1}, "pp_size must be an integer of at least 1"),
    ],
)
def test_sizes_that_do_not_fit(world: int, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_layout(ParallelConfig(**sizes), world_size=world, existing=None)


def test_the_launchers_variables_fill_what_is_left_open() -> None:
    environ = {"LLAMA_TP_SIZE": "2", "LLAMA_PP_SIZE": "3", "LLAMA_DEVICE": "cpu"}
    environ |= {"LLAMA_BACKEND": "gloo", "LLAMA_TRANSPORT": "shm"}
    limits = {"load_timeout_s": 1.0, "step_timeout_s": 2.0, "heartbeat_timeout_s": 0.0}
    asked = ParallelConfig(tp_size=4, timeout_s=7, init_timeout_s=3, **limits)
    named = {"device": "cpu", "backend": "gloo", "transport": "shm"}
    assert with_environment(asked, environ) == ParallelConfig(
        tp_size=4, pp_size=3, timeout_s=7, init_timeout_s=3, **named, **limits
    )
    assert with_environment(asked, dict.fromkeys(environ, "")) == asked
    with pytest.raises(UsageError, match="LLAMA_PP_SIZE must be a whole number, got 'two'"):
        with_environment(asked, {"LLAMA_PP_SIZE": "two"})


def test_open_time_limits_come_from_the_environment_then_from_the_defaults() -> None:
    environ = {"LLAMA_STEP_TIMEOUT_S": "2.5", "LLAMA_HEARTBEAT_TIMEOUT_S": "0"}
    environ["LLAMA_INIT_TIMEOUT_S"] = "1"
    found = with_environment(ParallelConfig(init_timeout_s=9), environ)
    limits = (found.init_timeout_s, found.load_timeout_s, found.step_timeout_s)
    assert (*limits, found.heartbeat_timeout_s) == (9, 300, 2.5, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STEP", "soon"),
        ("STEP", "0"),
        ("INIT", "-1"),
        ("LOAD", "nan"),
        ("HEARTBEAT", "-1"),
        ("INIT", "1e300"),
    ],
)
def test_a_time_limit_that_is_none(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"LLAMA_{name}_TIMEOUT_S must be .*, got '{value}'"):
        with_environment(ParallelConfig(), {f"LLAMA_{name}_TIMEOUT_S": value})


@pytest.mark.parametrize("limit", [{"timeout_s": 0}, {"step_timeout_s": -1}, {"timeout_s": True}])
def test_a_program_may_not_ask_for_such_a_limit_either(limit: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"must be a number of seconds above 0, got "):
        ParallelConfig(**limit)


def test_single_is_one_process_without_a_group() -> None:
    context = single()
    assert context.layout == ParallelLayout()
    assert (context.rank, context.local_world_size, context.backend.name) == (0, 1, "none")
    assert context.is_first_stage and context.is_last_stage and context.is_leader
    assert context.device == torch.device("cpu")
    context.fail(UsageError("nobody reads this"))
    context.close()
    context.close()
    assert not dist.is_initialized()


def by_itself(info: RankInfo) -> tuple[str, bool, bool]:
    context = initialize()
    return context.backend.name, dist.is_initialized(), "fairscale" in sys.modules


def test_without_a_launcher_there_is_no_group_and_no_fairscale() -> None:
    assert run_ranks(by_itself, 1) == [("none", False, False)]


def with_variables(info: RankInfo, environ: dict[str, str], config: ParallelConfig) -> None:
    os.environ.update(environ)
    initialize(config)


@pytest.mark.parametrize(
    ("environ", "config", "kind", "message"),
    [
        ({"RANK": "0"}, ParallelConfig(), HardwareError, "launch environment is incomplete"),
        ({}, ParallelConfig(tp_size=2), UsageError, "start a multiple of 2 ranks"),
        ({"LLAMA_PP_SIZE": "2"}, ParallelConfig(), UsageError, "start a multiple of 2 ranks"),
        ({"LLAMA_DEVICE": "tpu"}, ParallelConfig(), UsageError, "unknown device 'tpu'"),
        ({"LLAMA_TRANSPORT": "x"}, ParallelConfig(), UnknownNameError, "known: auto, shm, gloo"),
        ({"LLAMA_BACKEND": "nccl"}, ParallelConfig(device="cpu"), HardwareError, "'nccl' cannot"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    environ: dict[str, str], config: ParallelConfig, kind: type[LlamaError], message: str
) -> None:
    (error,) = run_ranks(with_variables, 1, environ, config, expect_error=True)
    assert type(error) is kind
    assert message in str(error)


def describe(context: ParallelContext) -> dict[str, Any]:
    from fairscale.nn.model_parallel import initialize as fs

    return {
        "stages": (context.is_first_stage, context.is_last_stage),
        "leads": context.is_leader,
        "sizes": (context.tp.size, context.pp.size, context.dp.size, context.replica.size),
        "local": context.local_world_size,
        "device": str(context.device),
        "backend": context.backend.name,
        "transport": context.transport.name,
        "fairscale": (
            fs.get_model_parallel_world_size(),
            fs.get_model_parallel_rank(),
            fs.get_model_parallel_src_rank(),
            fs.get_pipeline_parallel_ranks(),
            fs.get_data_parallel_world_size(),
            fs.get_data_parallel_rank(),
        ),
    }


GRIDS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2)]


@pytest.mark.parametrize(("tp", "pp", "dp"), GRIDS)
def test_every_rank_knows_its_place_and_fairscale_agrees(tp: int, pp: int, dp: int) -> None:
    layout = ParallelLayout(tp, pp, dp)
    for rank, found in enumerate(run_layout(describe, tp=tp, pp=pp, dp=dp, transport="auto")):
        at = layout.coordinates(rank)
        assert found == {
            "stages": (at.pp_rank == 0, at.pp_rank == pp - 1),
            "leads": rank == layout.replica_group(rank)[0],
            "sizes": (tp, pp, dp, tp * pp),
            "local": tp * pp * dp,
            "device": "cpu",
            "backend": "gloo",
            "transport": "none" if tp * pp * dp == 1 else "shm",
            "fairscale": (
                tp,
                at.tp_rank,
                layout.tp_group(rank)[0],
                list(layout.pp_group(rank)),
                dp,
                at.dp_rank,
            ),
        }


def sizes_from_the_environment(info: RankInfo) -> ParallelLayout:
    os.environ["LLAMA_PP_SIZE"] = "2"
    info.init_process_group()
    return initialize().layout


def test_the_launchers_sizes_reach_a_program_that_names_none() -> None:
    assert run_ranks(sizes_from_the_environment, 2) == [ParallelLayout(1, 2)] * 2


def with_groups_of_the_program(info: RankInfo) -> dict[str, Any]:
    from fairscale.nn.model_parallel import initialize as fs

    info.init_process_group()
    fs.initialize_model_parallel(1, 2)
    theirs = fs.get_pipeline_parallel_group()
    context = initialize()
    found: dict[str, Any] = {"layout": context.layout, "sum": context.pp.all_gather(torch.ones(1))}
    try:
        initialize(ParallelConfig(tp_size=2))
    except UsageError as error:
        found["other sizes"] = str(error)
    context.close()
    found["theirs is left"] = fs.get_pipeline_parallel_group() is theirs
    dist.barrier(theirs)
    return found


def test_groups_that_the_program_made_are_wrapped_and_left() -> None:
    for rank, found in enumerate(run_ranks(with_groups_of_the_program, 2)):
        assert found["layout"] == ParallelLayout(1, 2)
        assert found["sum"].tolist() == [1, 1]
        assert f"fairscale's tp group of rank {rank} has size 1" in found["other sizes"]
        assert "tp_size 2 x pp_size 1 needs size 2" in found["other sizes"]
        assert found["theirs is left"]


def again(info: RankInfo) -> list[Any]:
    hook = sys.excepthook
    info.init_process_group()
    from_torch = sys.excepthook
    first = initialize(ParallelConfig(pp_size=2))
    second = initialize()
    found: list[Any] = [second.layout, second.pp.all_gather(torch.tensor([info.rank])).tolist()]
    second.close()
    found.append(first.pp.all_gather(torch.tensor([info.rank])).tolist())
    first.close()
    found += [sys.excepthook is from_torch, get_logger().filters == [], dist.is_initialized()]
    third = initialize(ParallelConfig(tp_size=2))
    found += [third.layout, int(third.tp.all_reduce(torch.tensor([1])))]
    assert hook is sys.__excepthook__
    return found


def test_a_second_context_borrows_and_a_closed_one_leaves_nothing() -> None:
    grid, other = ParallelLayout(1, 2), ParallelLayout(2, 1)
    assert run_ranks(again, 2) == [[grid, [0, 1], [0, 1], True, True, True, other, 2]] * 2


def with_different_wishes(info: RankInfo) -> None:
    info.init_process_group()
    initialize(ParallelConfig(tp_size=2 if info.rank else 1, timeout_s=5))


def test_ranks_that_want_different_things_are_told() -> None:
    """Else they would make different groups, and wait for each other."""
    for error in run_ranks(with_different_wishes, 2, expect_error=True, deadline_s=30):
        assert type(error) is RankMismatchError
        assert "tp_size: 1 on rank 0; 2 on rank 1" in str(error)


def log_a_line(context: ParallelContext) -> str:
    import io
    import logging

    stream = io.StringIO()
    get_logger().addHandler(logging.StreamHandler(stream))
    get_logger().warning("100%% of %d", 3)
    return stream.getvalue().replace(context.host, "HOST")


def test_log_lines_say_which_rank_wrote_them() -> None:
    expected = [f"[rank {rank} HOST] 100% of 3\n" for rank in range(2)]
    assert run_layout(log_a_line, tp=2) == expected
