"""Architectures. One file per family: a block and what surrounds it; MODELS finds it."""

from __future__ import annotations

MODELS = {"gpt2": "llama.models.gpt2:GPT2", "llama": "llama.models.llama:LLAMA"}
"""By ModelConfig.architecture: a `llama.models.architecture.Architecture`."""
