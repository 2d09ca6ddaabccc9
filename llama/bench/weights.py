"""Random weights of a shape as a Hugging Face folder: the one source for all contestants.

Written tensor by tensor, so that even the largest shape takes no more memory than one of them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from llama.bench.shapes import ITEM_BYTES, Shape
from llama.checkpoint.writers.hf_config import hf_config
from llama.errors import OutputError

MODEL_FILE = "model.safetensors"
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_POSITIONS = 8192
_SPREAD = 4.0
"""Standard deviation of the logits: greedy choices are then further apart than rounding."""


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Stored name -> shape of every tensor, in the order of the file."""
    config = shape.config
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.dim)
    }
    for layer in range(config.n_layers):
        block = {
            "input_layernorm": (config.dim,),
            "self_attn.q_proj": (q_dim, config.dim),
            "self_attn.k_proj": (kv_dim, config.dim),
            "self_attn.v_proj": (kv_dim, config.dim),
            "self_attn.o_proj": (config.dim, q_dim),
            "post_attention_layernorm": (config.dim,),
            "mlp.gate_proj": (config.ffn_dim, config.dim),
            "mlp.up_proj": (config.ffn_dim, config.dim),
            "mlp.down_proj": (config.dim, config.ffn_dim),
        }
        found |= {f"model.layers.{layer}.{name}.weight": size for name, size in block.items()}
    return found | {
        "model.norm.weight": (config.dim,),
        "lm_head.weight": (config.vocab_size, config.dim),
    }


def random_tensors(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in turn, as it is stored. Activations keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    for name, size in tensor_shapes(shape).items():
        if len(size) == 1:
            weight = torch.ones(size)
        else:
            scale = _SPREAD if name == "lm_head.weight" else 1.0
            scale = math.sqrt(size[1]) if name.startswith("model.embed") else scale
            weight = torch.empty(size).normal_(0, scale / math.sqrt(size[1]), generator=generator)
        yield name, weight.to(getattr(torch, shape.dtype))


def write_weights(shape: Shape, home: Path) -> Path:
    """The folder of `shape` below `home`, made unless it is there.

    Raises OutputError when the disk has not enough room or cannot be written.
    """
    folder = home / f"{shape.name}-{shape.dtype}"
    if (folder / "config.json").is_file():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        check_room(home, shape.stored_bytes, what=f"random weights of {shape.name}")
        with TemporaryDirectory(prefix=f"{folder.name}-", dir=home) as name:
            unfinished = Path(name, "model")
            unfinished.mkdir()
            _write_safetensors(unfinished / MODEL_FILE, shape)
            (unfinished / "config.json").write_text(json.dumps(_hf_config(shape), indent=2) + "\n")
            unfinished.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write weights to {home}: {error.strerror or error}") from None
    return folder


def check_room(folder: Path, nbytes: int, *, what: str) -> None:
    """Raises OutputError with both numbers when the disk of `folder` has less than `nbytes`."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OutputError(
            f"{what} take {nbytes / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            f"name a larger disk with --keep FOLDER"
        )


def _write_safetensors(path: Path, shape: Shape) -> None:
    """The format of safetensors: length of the header, header in JSON, tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensor_shapes(shape).items():
        begin, end = end, end + math.prod(size) * ITEM_BYTES[shape.dtype]
        header[name] = {
            "dtype": _STORED[shape.dtype],
            "shape": size,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, weight in random_tensors(shape):
            file.write(weight.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _hf_config(shape: Shape) -> dict[str, Any]:
    """Of a model that no tokenizer belongs to."""
    config = replace(shape.config, max_positions=_POSITIONS)
    return hf_config(config, dtype=getattr(torch, shape.dtype), is_tied=False, ids={})
