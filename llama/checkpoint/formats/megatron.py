"""Megatron-LM's per-rank format, legacy and core, as full named tensors.

Where the ranks' files are, what they call their tensors, how fused ones are laid out and which
model they make is known in the modules beside this one; here they come together.
"""

from __future__ import annotations

from pathlib import Path

from llama.checkpoint.canonical import EMBEDDING, HEAD, split_dim
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.megatron_args import Arguments, read_arguments
from llama.checkpoint.formats.megatron_config import model_config
from llama.checkpoint.formats.megatron_dir import RankFiles, is_megatron, rank_files
from llama.checkpoint.formats.megatron_head import checked_copies
from llama.checkpoint.formats.megatron_names import GATE_UP, HEAD_COPY, QKV
from llama.checkpoint.formats.megatron_qkv import QkvLayout, split_gate_up, split_qkv
from llama.checkpoint.formats.megatron_stages import (
    MegatronModel,
    RankContent,
    Shards,
    join,
    load_rank,
)
from llama.checkpoint.formats.megatron_vocab import vocabulary
from llama.checkpoint.reader import CheckpointReader, Format, make_reader
from llama.config import ModelConfig
from llama.errors import CheckpointError


def open_megatron(folder: Path) -> CheckpointReader:
    """The checkpoint in `folder`, opened and checked. Raises CheckpointError."""
    files = rank_files(folder)
    folders = list(dict.fromkeys((folder, files.folder)))
    ranks, arguments = _load_ranks(files, folders)
    model = join(ranks)
    _check_is_whole(model, files, arguments)
    known = vocabulary(model, arguments, folders)
    where = str(files.folder)
    config = model_config(model, arguments, vocab_size=known.size, files=where)
    version = ranks[0, 0].version
    ignored = {name: why for rank in ranks.values() for name, why in rank.ignored.items()}
    if config.tied_embeddings:
        ignored |= checked_copies(model)
    return make_reader(
        "megatron",
        folder,
        config,
        _tensors(model, config, version),
        ignored=ignored,
        notes=() if known.note is None else (known.note,),
    )


MEGATRON = Format(is_megatron, open_megatron)


def _load_ranks(
    files: RankFiles, folders: list[Path]
) -> tuple[dict[tuple[int, int], RankContent], Arguments]:
    """All ranks, once the first has told how many there are."""
    rank, path = min(files.files.items())
    first = load_rank(path)
    arguments = read_arguments(path, first.arguments, folders)
    files.check(
        arguments.integer("tensor_model_parallel_size") or files.tp_size,
        arguments.integer("pipeline_model_parallel_size") or files.pp_size,
    )
    others = {key: load_rank(other) for key, other in files.files.items() if key != rank}
    return {rank: first, **others}, arguments


def _check_is_whole(model: MegatronModel, files: RankFiles, arguments: Arguments) -> None:
    """Find ranks missing at the end of the count, which no argument tells in the oldest files."""
    if EMBEDDING not in model.top or len(model.top[EMBEDDING][0].shape) != 2:
        raise CheckpointError(
            f"{files.folder}: no file holds a matrix of word embeddings, so this is not a whole "
            f"model of Megatron-LM"
        )
    if "norm.weight" not in model.top:
        raise CheckpointError(
            f"{files.folder}: {len(files.files)} rank folders found (tp {files.tp_size} x pp "
            f"{files.pp_size}), but none holds the final norm, so those of the last pipeline "
            f"stage are missing; download what is missing"
        )
    if not {"tensor_model_parallel_size", "kv_channels"} & arguments.values.keys():
        files.check(_tp_size_by_shape(model), files.pp_size)


def _tp_size_by_shape(model: MegatronModel) -> int:
    """How many tensor ranks make the first output projection square, as it is without kv_channels.

    What is found, where that is no number of ranks.
    """
    shards = model.layers[0].get("attention.wo.weight") if model.layers else None
    if shards is None or len(shards[0].shape) != 2 or 0 in shards[0].shape:
        return model.tp_size
    rows, columns = shards[0].shape
    return model.tp_size if rows % columns else rows // columns


def _tensors(model: MegatronModel, config: ModelConfig, version: float) -> dict[str, StoredTensor]:
    """Every canonical name that there is something for."""
    found: dict[str, StoredTensor] = {}
    for name, shards in model.top.items():
        if name in (EMBEDDING, HEAD):
            rows = sum(shard.shape[0] for shard in shards if shard.shape)
            joined = StoredTensor.of(shards, dim=0)
            found[name] = joined.narrow(0, 0, min(config.vocab_size, rows))
        elif name != HEAD_COPY:
            found[name] = _joined(name, shards)
    if config.tied_embeddings:
        found[HEAD] = found[EMBEDDING]
    layout = _qkv_layout(model, config, version)
    for number, layer in enumerate(model.layers):
        for name, shards in layer.items():
            for own_name, tensor in _unfused(name, shards, layout, config).items():
                found[f"layers.{number}.{own_name}"] = tensor
    return found


def _qkv_layout(model: MegatronModel, config: ModelConfig, version: float) -> QkvLayout:
    tp_size = model.tp_size
    if config.n_heads % tp_size or config.n_kv_heads % tp_size:
        raise CheckpointError(
            f"{model.top[EMBEDDING][0].path}: {tp_size} tensor ranks cannot share {config.n_heads} "
            f"heads in {config.n_kv_heads} query groups; its arguments belong to another model"
        )
    if config.n_heads != config.n_kv_heads and version < 2:
        raise CheckpointError(
            f"{model.top[EMBEDDING][0].path}: checkpoint_version {version} has no query groups, "
            f"but num_query_groups is {config.n_kv_heads} for {config.n_heads} heads"
        )
    return QkvLayout(
        version=version,
        n_heads=config.n_heads // tp_size,
        n_groups=config.n_kv_heads // tp_size,
        head_dim=config.head_dim,
    )


def _unfused(
    name: str, shards: Shards, layout: QkvLayout, config: ModelConfig
) -> dict[str, StoredTensor]:
    """Canonical name within the layer -> tensor; two or three of them from a fused one."""
    owner, _, kind = name.rpartition(".")
    if owner == QKV:
        q, k, v = split_qkv(shards, layout)
        return {f"attention.{n}.{kind}": t for n, t in (("wq", q), ("wk", k), ("wv", v))}
    if owner != GATE_UP:
        return {name: _joined(name, shards)}
    if config.architecture == "gpt2":
        return {f"feed_forward.w1.{kind}": StoredTensor.of(shards, dim=0)}
    gate, up = split_gate_up(shards)
    return {f"feed_forward.w1.{kind}": gate, f"feed_forward.w3.{kind}": up}


def _joined(name: str, shards: Shards) -> StoredTensor:
    dim = split_dim(name)
    if dim is not None and len(shards[0].shape) <= dim:
        raise CheckpointError(f"{shards[0].path}: {name} has shape {shards[0].shape}")
    return StoredTensor.of(shards[:1] if dim is None else shards, dim=dim)
