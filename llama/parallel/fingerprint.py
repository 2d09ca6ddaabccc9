"""What must be alike on all ranks before they speak: versions, and what changes numbers or calls.

Only what this process runs with; what it was asked to run is compared by who knows it.
"""

from __future__ import annotations

import platform
import sys

import torch
import torch.distributed as dist

from llama.version import VERSION


def environment() -> dict[str, str]:
    """This process's, by field, in words.

    The number of threads and the kind of CPU are left out: each rank may have its own, since every
    number that several ranks need is computed once or comes out of a collective.
    """
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    return {
        "llama": VERSION,
        "python": python,
        "torch": str(torch.__version__),
        "byte order": sys.byteorder,
        # under DETAIL each collective is preceded by others, which a rank without it never joins
        "TORCH_DISTRIBUTED_DEBUG": dist.get_debug_level().name,  # type: ignore[attr-defined]
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
    }
