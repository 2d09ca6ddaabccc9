"""Other engines on the same weights and prompts, each imported only in its own process."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "transformers": ("transformers", "safetensors"),
        "llama.cpp": ("llama-cpp-python", "gguf"),
    }
)
"""Engine -> the packages that measuring it needs."""


def missing(engine: str) -> list[str]:
    """The packages of `engine` that are not installed."""
    return [package for package in PACKAGES.get(engine, ()) if installed(package) is None]


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
