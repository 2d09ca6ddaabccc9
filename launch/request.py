"""What the user asked of the launcher. None leaves a choice open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from launch.nodes import NodeRequest
from launch.supervisor import GRACE_S
from llama.config import ParallelConfig
from llama.errors import UsageError


@dataclass(frozen=True)
class LaunchRequest:
    """`program` is what follows `python`: ("script.py", ...), ("-m", "module", ...) or
    ("-c", "code", ...).

    `nproc`, the ranks of this machine, is the launcher's choice when open, `tp`, `pp`, `backend`,
    `device` and `transport` are the ranks'. `limits_s` are time limits by their names in
    `ParallelConfig`. With `has_prefix`, lines of several ranks say which of them wrote them. With
    `has_fork`, ranks are copies of the launcher where that is safe, and it imports the modules of
    `preload` for all of them.
    """

    program: tuple[str, ...]
    nproc: int | Literal["auto"] | None = None
    tp: int | None = None
    pp: int | None = None
    backend: str | None = None
    device: str | None = None
    transport: str | None = None
    nodes: NodeRequest = field(default_factory=NodeRequest)
    limits_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    shutdown_timeout_s: float = GRACE_S
    log_dir: Path | None = None
    has_prefix: bool = True
    has_affinity: bool = True
    has_fork: bool = True
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nproc", "tp", "pp"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if not 0 <= self.shutdown_timeout_s < inf:
            raise UsageError(f"--shutdown_timeout must be 0 or more, got {self.shutdown_timeout_s}")
        _ = self.parallel_config

    @property
    def parallel_config(self) -> ParallelConfig:
        """The sizes and time limits. Raises UsageError for a limit that is none."""
        wishes: dict[str, Any] = {"tp_size": self.tp, "pp_size": self.pp, **self.limits_s}
        return ParallelConfig(**wishes)

    def count_ranks(self, n_gpus: int) -> int:
        """Ranks of this machine: as asked; else what --tp and --pp need; else one a GPU, and one
        where there is none.

        "auto" is one a GPU, and where there is none what --tp and --pp need. Raises UsageError
        when the nodes cannot share that evenly.
        """
        if isinstance(self.nproc, int):
            return self.nproc
        is_sized = self.tp is not None or self.pp is not None
        if n_gpus and not (is_sized and self.nproc is None):
            return n_gpus
        n_ranks, nnodes = (self.tp or 1) * (self.pp or 1), self.nodes.nnodes
        if is_sized and n_ranks % nnodes:
            raise UsageError(
                f"{n_ranks} ranks (tp x pp) cannot be shared evenly by {nnodes} nodes; "
                "give each launcher its --nproc"
            )
        return n_ranks // nnodes if is_sized else n_ranks
