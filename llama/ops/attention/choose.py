"""Which backend runs here, and why. "auto" takes the fastest that can."""

from __future__ import annotations

import torch

from llama.errors import HardwareError, UnknownNameError
from llama.native import why_not
from llama.ops.attention import ATTENTION
from llama.ops.attention.flash import load_kernel
from llama.ops.attention.paged import has_kernel
from llama.ops.kernels import DTYPES, kernels

AUTO = "auto"
_MIN_CAPABILITY = (8, 0)
_MAX_HEAD_DIM = 256


def choose_attention(
    name: str, *, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[str, str]:
    """The name in ATTENTION that `name`, one of them or "auto", stands for, and why, in one line.

    On CUDA that is `paged`, which steps can be captured with, then flash.
    Raises UnknownNameError, and HardwareError for flash and native where they cannot run.
    """
    if name != AUTO and name not in ATTENTION:
        known = ", ".join(sorted((AUTO, *ATTENTION)))
        raise UnknownNameError(f"unknown attention backend {name!r}; known: {known}")
    if name == AUTO and device.type == "cuda" and has_kernel(device):
        return "paged", "Triton has its kernel for this device"
    fastest = "native" if device.type == "cpu" else "flash"
    wanted = fastest if name == AUTO else name
    try:
        if wanted == "flash":
            _check_flash(device=device, dtype=dtype, head_dim=head_dim)
        elif wanted == "native":
            _check_native(device=device, dtype=dtype, head_dim=head_dim)
    except HardwareError as error:
        if name == AUTO:
            return "sdpa", str(error)
        raise HardwareError(
            f"attention backend {name} cannot run: {error}; use auto or sdpa"
        ) from error
    return wanted, "as asked" if name == wanted else f"{wanted} has kernels for this device"


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


def _check_native(*, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises HardwareError."""
    if device.type != "cpu":
        raise HardwareError(f"native kernels need a CPU, not {device.type}")
    if dtype not in DTYPES or head_dim % 8:
        raise HardwareError(
            f"native kernels take float32, bfloat16 and float16 and heads of a multiple of 8, not "
            f"{dtype} and {head_dim}"
        )
    if kernels() is None:
        raise HardwareError(f"no native kernels: {why_not('math')}")
