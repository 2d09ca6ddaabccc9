"""Hugging Face's format: config.json and safetensors, in one file or in several with an index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llama.checkpoint.canonical import HEAD
from llama.checkpoint.formats.hf_names import GPT2_TRANSPOSED, QKV, SPELLINGS
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers.hf_config import CONFIG, GENERATION_CONFIG, hf_config, special_ids
from llama.checkpoint.writers.output_file import OutputFile, Plan, SafetensorsFile, TextFile
from llama.checkpoint.writers.output_tensor import Columns, OutputTensor, Piece
from llama.checkpoint.writers.source import Options, Source, refuse
from llama.errors import UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FILE_BYTES = 5 * 10**9
"""What a file is cut at when nobody says how many there shall be."""


def plan(reader: CheckpointReader, options: Options) -> Plan:
    """The files. Raises UsageError for a model that the format cannot hold."""
    config = reader.config
    is_mistral = config.sliding_window is not None
    has_bias = config.attention_bias or config.mlp_bias
    refuse(
        config,
        "hf",
        {"it has a sliding window and biases, which Mistral's has not": is_mistral and has_bias},
        possible="the format that it is in",
    )
    source = Source(reader, "half", options.dtype)
    tensors = _tensors(source)
    ids = special_ids(config, reader.folder)
    spelled = hf_config(
        config, dtype=options.dtype or reader.dtype, is_tied=source.is_tied, ids=ids
    )
    others: list[OutputFile] = [TextFile.json(CONFIG, spelled)]
    if ids and not (reader.folder / GENERATION_CONFIG).is_file():
        others.append(TextFile.json(GENERATION_CONFIG, {"_from_model_config": True, **ids}))
    shards = _shards(tensors, options.shards)
    if len(shards) == 1:
        return Plan([SafetensorsFile(SINGLE, tensors)], others)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {key: name for name, held in zip(names, shards, strict=True) for key in held}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files = [SafetensorsFile(name, held) for name, held in zip(names, shards, strict=True)]
    return Plan(files, [*others, TextFile.json(INDEX, index)])


def _tensors(source: Source) -> dict[str, OutputTensor]:
    """Every tensor by its stored name; a tied head is left out."""
    spelling = SPELLINGS[source.config.architecture]
    found: dict[str, OutputTensor] = {}
    for name in source.tensors:
        if name == HEAD and source.is_tied:
            continue
        canonical, pieces = name, [source.rows(name)]  # type: tuple[str, Sequence[Piece]]
        if source.config.architecture == "gpt2" and name.startswith("layers."):
            made = _gpt2_linear(source, name)
            if made is None:
                continue
            canonical, pieces = made
        stored = spelling.write(canonical)
        found[stored] = source.output(stored, *pieces)
    return found


def _gpt2_linear(source: Source, name: str) -> tuple[str, Sequence[Piece]] | None:
    """What GPT-2 stores for `name`, fused and as [in, out]; None for what another one includes."""
    match = re.fullmatch(r"(layers\.\d+\.)(attention\.w[qkv])?(.+)", name)
    assert match is not None, name
    layer, projection, rest = match.groups()
    if projection in ("attention.wk", "attention.wv"):
        return None
    names, in_layer = [name], f"{projection or ''}{rest}"
    if projection is not None:
        names = [f"{layer}attention.w{which}{rest}" for which in "qkv"]
        in_layer = f"{QKV}{rest}"
    if in_layer in GPT2_TRANSPOSED:
        return f"{layer}{in_layer}", [Columns(tuple(source.tensors[n] for n in names))]
    return f"{layer}{in_layer}", [source.rows(n) for n in names]


def _shards(
    tensors: Mapping[str, OutputTensor], n_shards: int | None
) -> list[dict[str, OutputTensor]]:
    """The tensors in order, in files of about equal size."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    n_shards = n_shards or max(1, -(-total // _FILE_BYTES))
    if n_shards > len(tensors):
        raise UsageError(f"--shards {n_shards} exceeds the {len(tensors)} tensors of the model")
    shards: list[dict[str, OutputTensor]] = [{} for _ in range(n_shards)]
    waiting, end = len(tensors), 0
    number = 0
    for name, tensor in tensors.items():
        # a file ends where its share of the bytes does, or where each one left needs a tensor
        is_full = end >= total * (number + 1) // n_shards or waiting <= n_shards - number - 1
        if shards[number] and is_full and number + 1 < n_shards:
            number += 1
        shards[number][name] = tensor
        end += tensor.nbytes
        waiting -= 1
    return shards
