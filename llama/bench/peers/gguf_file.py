"""A Hugging Face folder of random weights as the GGUF file that llama.cpp reads.

llama.cpp's Llama rotates neighbours (2i, 2i+1) where Hugging Face rotates halves
(i, i + head_dim/2), so the rows of wq and wk change places. Vectors stay float32, as in llama.cpp's
own conversion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from safetensors import safe_open

from llama.bench.shapes import Shape
from llama.bench.weights import MODEL_FILE, check_room
from llama.config import ModelConfig

Array = npt.NDArray[np.float32]
_CONTEXT_TOKENS = 8192
BITS_PER_WEIGHT: Mapping[str, float] = MappingProxyType(
    {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0, "q8_0": 8.5}
)
"""Of matrices. A block of Q8_0 is 32 values of a byte and one 16-bit scale."""
_TYPES = MappingProxyType(
    {
        "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
        "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }
)
_WHOLE = MappingProxyType(
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
)
_IN_BLOCK = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)


def write_gguf(shape: Shape, folder: Path, path: Path, *, dtype: str) -> Path:
    """Write the weights in `folder` to `path` as "float32", "float16", "bfloat16" or "q8_0"."""
    kind, file_type = _TYPES[dtype]
    n_bytes = shape.n_parameters * BITS_PER_WEIGHT[dtype] / 8
    check_room(path.parent, int(n_bytes), what=f"weights of {shape.name} for llama.cpp")
    writer = GGUFWriter(path, "llama")
    _describe(writer, shape.config, file_type)
    with safe_open(folder / MODEL_FILE, framework="pt") as stored:
        sizes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        for name, size in sizes.items():
            n_values, n_bytes = GGML_QUANT_SIZES[_type_of(size, kind)]
            writer.add_tensor_info(
                gguf_name(name),
                size,
                np.dtype(np.float32),
                math.prod(size) // n_values * n_bytes,
                raw_dtype=_type_of(size, kind),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, size in sizes.items():
            rows = _interleaved(name, stored.get_tensor(name).float().numpy(), shape.config)
            writer.write_tensor_data(quants.quantize(rows, _type_of(size, kind)))
    writer.close()
    return path


def _type_of(size: Sequence[int], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    return kind if len(size) > 1 else GGMLQuantizationType.F32


def _describe(writer: GGUFWriter, config: ModelConfig, file_type: LlamaFileType) -> None:
    writer.add_context_length(_CONTEXT_TOKENS)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(file_type)


def _interleaved(name: str, weight: Array, config: ModelConfig) -> Array:
    """`weight` with the halves of every head of wq and wk shuffled into pairs."""
    n_heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])
    if n_heads is None:
        return weight
    halves = weight.reshape(n_heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor of Hugging Face's Llama."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    assert match is not None, name
    return f"blk.{match[1]}.{_IN_BLOCK[match[2]]}.weight"
