"""Meta's Llama 2 checkpoint folder: two model-parallel shards, params.json, checklist.chk.

It knows names, shapes and files, and nothing of what the weights say.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from net import Net, NetConfig, rope_freqs
from torch import Tensor

N_SHARDS = 2
DTYPE = torch.bfloat16
FILES = (*(f"consolidated.{rank:02d}.pth" for rank in range(N_SHARDS)), "params.json")

# Column-parallel matrices hold whole outputs, row-parallel ones whole inputs; Llama 2 splits its
# embedding by hidden dim. What is not listed (norms, rope.freqs) is the same in every shard.
SPLIT_DIM = {
    "tok_embeddings": 1,
    "output": 0,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w3": 0,
    "w2": 1,
}


def split_dim(name: str) -> int | None:
    return SPLIT_DIM.get(name.removesuffix(".weight").rpartition(".")[2])


def shards(net: Net) -> list[dict[str, Tensor]]:
    """One flat dict per rank; cloned, for torch.save writes the whole storage behind a view."""
    whole = {**net.state_dict(), "rope.freqs": rope_freqs(net.config)}
    parts: list[dict[str, Tensor]] = [{} for _ in range(N_SHARDS)]
    for name, tensor in whole.items():
        dim = split_dim(name)
        pieces = [tensor] * N_SHARDS if dim is None else tensor.chunk(N_SHARDS, dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.to(DTYPE).clone(memory_format=torch.contiguous_format)
    return parts


def params(config: NetConfig) -> dict[str, int | float]:
    """vocab_size is -1 in Llama 2's files: the tokenizer has the last word."""
    return {
        "dim": config.dim,
        "multiple_of": config.multiple_of,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.norm_eps,
        "vocab_size": -1,
    }


def write(net: Net, tokenizer_model: bytes, folder: Path) -> None:
    for rank, part in enumerate(shards(net)):
        torch.save(part, folder / FILES[rank])
    (folder / "params.json").write_text(json.dumps(params(net.config)))
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    names = (*FILES, "tokenizer.model")
    sums = [hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{md5}  {name}\n" for md5, name in zip(sums, names, strict=True)]
    (folder / "checklist.chk").write_text("".join(lines))


def read(folder: Path, *, vocab_size: int) -> Net:
    """The net in `folder`, merged from its shards, in fp32."""
    values = json.loads((folder / "params.json").read_text())
    net = Net(NetConfig(**{**values, "vocab_size": vocab_size}))
    parts = [
        torch.load(folder / FILES[rank], weights_only=True, mmap=True, map_location="cpu")
        for rank in range(N_SHARDS)
    ]
    merged = {}
    for name in net.state_dict():
        dim = split_dim(name)
        pieces = [part[name] for part in parts]
        merged[name] = (pieces[0] if dim is None else torch.cat(pieces, dim)).float()
    net.load_state_dict(merged)
    return net
