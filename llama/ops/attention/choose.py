"""Which backend runs here, and why. "auto" takes the fastest that can."""

from __future__ import annotations

import torch

from llama.errors import HardwareError, UnknownNameError
from llama.ops.attention import ATTENTION
from llama.ops.attention.flash import load_kernel

AUTO = "auto"
_MIN_CAPABILITY = (8, 0)
_MAX_HEAD_DIM = 256


def choose_attention(
    name: str, *, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[str, str]:
    """The name in ATTENTION that `name`, one of them or "auto", stands for, and why, in one line.

    Raises UnknownNameError, and HardwareError for flash where it cannot run.
    """
    if name != AUTO and name not in ATTENTION:
        known = ", ".join(sorted((AUTO, *ATTENTION)))
        raise UnknownNameError(f"unknown attention backend {name!r}; known: {known}")
    if name not in (AUTO, "flash"):
        return name, "as asked"
    try:
        _check_flash(device=device, dtype=dtype, head_dim=head_dim)
    except HardwareError as error:
        if name == AUTO:
            return "sdpa", str(error)
        raise HardwareError(
            f"attention backend flash cannot run: {error}; use auto or sdpa"
        ) from error
    return "flash", "as asked" if name == "flash" else "flash_attn has kernels for this device"


def _check_flash(*, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises HardwareError, first for what no installation would change."""
    if device.type != "cuda":
        raise HardwareError(f"flash_attn needs a CUDA device, not {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        found = ".".join(map(str, capability))
        raise HardwareError(f"flash_attn needs compute capability 8.0, not {found}")
    if dtype not in (torch.float16, torch.bfloat16):
        raise HardwareError(f"flash_attn computes in float16 or bfloat16, not {dtype}")
    # it would pad other heads, and so copy the cache on every call
    if head_dim > _MAX_HEAD_DIM or head_dim % 8:
        raise HardwareError(
            f"flash_attn takes heads of a multiple of 8, at most {_MAX_HEAD_DIM}, not {head_dim}"
        )
    load_kernel()
