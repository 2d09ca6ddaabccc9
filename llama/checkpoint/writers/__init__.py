"""How a checkpoint is laid out in the formats that are written; one file per format.

WRITERS are planners: they say which tensors make which file, and write nothing themselves.
"""

from __future__ import annotations

WRITERS = {
    "meta": "llama.checkpoint.writers.meta:plan",
    "hf": "llama.checkpoint.writers.hf:plan",
    "megatron": "llama.checkpoint.writers.megatron:plan",
    "mistral": "llama.checkpoint.writers.mistral:plan",
}
