"""Commands that run on ranks, and how such a command starts its own: itself again, under `launch`.

What can be known to fail is refused here, in one process, before any rank is started.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llama.cli.model_options import ModelOptions

if TYPE_CHECKING:
    from llama.llm import LLM

HOME = Path(__file__).parents[2]
"""The folder that this package was imported from."""
RANK_PROGRAM = (
    "import sys; home = {home!r}; sys.path[:1] = [home] * (home not in sys.path[1:]); "
    "from llama.cli import main; sys.exit(main())"
)
"""With -m, Python would look for modules in the current folder first, which may be a checkpoint.

`home` takes its place only where nothing else leads there: site-packages must not come before the
standard library.
"""
PRELOAD = ("llama.llm", "fairscale.nn.model_parallel.initialize")
"""What every rank will import, besides torch."""
READY_FD = "LLAMA_READY_FD"
"""Names the pipe where rank 0 writes when Ctrl-C is for it to handle; see `launch.env`."""


class RankCommand(ABC):
    """A command whose `run` is collective: every rank is started with the same words."""

    model: ModelOptions
    is_conversation: ClassVar[bool] = False

    @abstractmethod
    def run(self) -> None: ...


def is_rank() -> bool:
    """Whether a launcher, srun or mpirun started this process among others.

    Raises HardwareError when they did not say all that a rank needs to know.
    """
    from llama.parallel.meeting.launched import Launched

    return Launched.from_environment(os.environ) is not None


def start(words: Sequence[str], command: RankCommand) -> int:
    """Run the command line `words` on the ranks that `command` asks for; the exit status.

    Raises what `check` raises, and UsageError or HardwareError where this machine cannot do it.
    """
    from launch import env
    from launch.hardware import import_torch
    from launch.request import LaunchRequest
    from launch.spawn import launch

    model = command.model
    request = LaunchRequest(
        program=("-c", RANK_PROGRAM.format(home=str(HOME)), *words),
        nproc="auto" if "auto" in (model.tp, model.pp) else None,
        tp=None if model.tp == "auto" else model.tp,
        pp=None if model.pp == "auto" else model.pp,
        backend=model.backend or os.environ.get(env.BACKEND) or None,
        device=model.device or os.environ.get(env.DEVICE) or None,
        transport=model.transport or os.environ.get(env.TRANSPORT) or None,
        has_prefix=False,  # what rank 0 prints is the result
        preload=PRELOAD,
    )
    import_torch(request.count_ranks(n_gpus=0))
    check(model)
    return launch(request, forward_interrupt=command.is_conversation)


def check(model: ModelOptions) -> None:
    """From headers and names: raises CheckpointError or UsageError when no rank could load this."""
    from llama.checkpoint import open_checkpoint
    from llama.models import MODELS
    from llama.models.decoder import stage_of
    from llama.parallel.shard import ffn_shard, head_shard
    from llama.quant.choose import linear_method
    from llama.registry import resolve

    linear_method(model.quantize)
    reader = open_checkpoint(model.ckpt_dir, format=model.format)
    config = reader.config
    reader.close()
    resolve(MODELS, config.architecture, kind="architecture")
    if isinstance(model.tp, int):
        head_shard(config.n_heads, config.n_kv_heads, tp_size=model.tp, tp_rank=0)
        ffn_shard(config.ffn_dim, tp_size=model.tp, tp_rank=0)
    if isinstance(model.pp, int):
        stage_of(config, pp_size=model.pp, pp_rank=0)


def from_rank_0(token_ids: list[int], llm: LLM) -> list[int]:
    """Rank 0's `token_ids` on every rank. Collective over the world."""
    world = llm.context.world
    if world.size == 1:
        return token_ids
    import torch

    size = int(world.broadcast(torch.tensor([len(token_ids)])))
    mine = token_ids if world.rank == 0 else [0] * size
    received: list[int] = world.broadcast(torch.tensor(mine, dtype=torch.int64)).tolist()
    return received


@contextmanager
def taking_interrupts() -> Iterator[None]:
    """While entered, the launcher passes Ctrl-C to this process instead of ending the job."""
    text = os.environ.get(READY_FD)
    if text is None:
        yield
        return
    os.write(int(text), b"1")
    try:
        yield
    finally:
        os.write(int(text), b"0")
