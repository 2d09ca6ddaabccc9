"""Meta's `llama.model`: ModelArgs, Transformer, and the classes and functions beside them.

A thin face: the model itself is `llama.models`; here is what programs written for Meta's package
touch.
"""

from llama.engine.inside import ModelOutput
from llama.layers.attention import ParallelAttention as Attention
from llama.layers.mlp import SwiGLU as FeedForward
from llama.layers.norm import RMSNorm
from llama.model.args import ModelArgs
from llama.model.functions import (
    apply_rotary_emb,
    precompute_freqs_cis,
    repeat_kv,
    reshape_for_broadcast,
)
from llama.model.transformer import Transformer
from llama.models.llama import LlamaBlock as TransformerBlock

__all__ = [
    "Attention",
    "FeedForward",
    "ModelArgs",
    "ModelOutput",
    "RMSNorm",
    "Transformer",
    "TransformerBlock",
    "apply_rotary_emb",
    "precompute_freqs_cis",
    "repeat_kv",
    "reshape_for_broadcast",
]
