"""fairscale's model-parallel groups: made by it, wrapped by us. Nothing else imports fairscale.

After this its getters answer (`get_model_parallel_world_size` and so on), as code written for
Meta's package expects. Its layers are not used.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from llama.errors import UsageError
from llama.parallel.layout import ParallelLayout


@dataclass(frozen=True)
class ModelParallelGroups:
    """This rank's process group of each axis."""

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup


def make_groups(layout: ParallelLayout, *, backend: Literal["nccl", "gloo"]) -> ModelParallelGroups:
    """Have fairscale make the groups of `layout`. Collective.

    They carry data over `backend` along tp and pp, and over gloo along dp. Needs a default process
    group, and no groups in fairscale yet.
    """
    from fairscale.nn.model_parallel import initialize as state

    with redirect_stdout(io.StringIO()):  # it prints its sizes on rank 0
        state.initialize_model_parallel(
            layout.tp_size,
            layout.pp_size,
            model_parallel_backend=backend,
            pipeline_backend=backend,
            ddp_backend="gloo",
        )
    groups = existing_groups()
    assert groups is not None
    return groups


def existing_groups() -> ModelParallelGroups | None:
    """The groups that the program made already, None if it made none."""
    from fairscale.nn.model_parallel import initialize as state

    if not state.model_parallel_is_initialized():
        return None
    return ModelParallelGroups(
        tp=state.get_model_parallel_group(),
        pp=state.get_pipeline_parallel_group(),
        dp=state.get_data_parallel_group(),
    )


def forget_groups() -> None:
    """Make fairscale forget its groups, so that it can be initialised again."""
    from fairscale.nn.model_parallel import initialize as state

    state.destroy_model_parallel()


def check_groups(groups: ModelParallelGroups, layout: ParallelLayout, *, rank: int) -> None:
    """Raise UsageError unless these are the groups of `layout` that have `rank`.

    fairscale clamps sizes silently, and a program's groups may be of any make.
    """
    for axis, group, wanted in (
        ("tp", groups.tp, layout.tp_group(rank)),
        ("pp", groups.pp, layout.pp_group(rank)),
        ("dp", groups.dp, layout.dp_group(rank)),
    ):
        found = tuple(dist.get_process_group_ranks(group))
        if found != wanted:
            raise UsageError(
                f"fairscale's {axis} group of rank {rank} has {_ranks(found)}, but tp_size "
                f"{layout.tp_size} x pp_size {layout.pp_size} needs {_ranks(wanted)}; ask for the "
                "sizes of the groups that exist, or call destroy_model_parallel() first"
            )


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"size {len(ranks)} (ranks {', '.join(map(str, ranks))})"
