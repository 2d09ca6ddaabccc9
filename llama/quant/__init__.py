"""How the weight of a linear layer is stored, and multiplied with.

A name in QUANT stands for a function of a group size (None: the method's own) that makes a
LinearMethod.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

QUANT: Mapping[str, str] = MappingProxyType(
    {
        "int8": "llama.quant.integers:int8",
        "int8_dynamic": "llama.quant.integers:int8_dynamic",
        "int4": "llama.quant.integers:int4",
        "fp8": "llama.quant.fp8:fp8",
    }
)
"""Method name -> where it is made. Import from `llama.quant.choose` what is needed to run one."""
