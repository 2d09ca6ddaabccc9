"""Meta's format: params.json, consolidated.NN.pth cut as Meta's model-parallel layers load them,
and checklist.chk.

The token embedding is cut along the vocabulary where it has more than 100,000 rows, as Llama 3's
128,256 are, and else along the hidden dim as in Llama 1, 2 and Code Llama: Meta's package of either
generation loads only its own cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llama.checkpoint.canonical import EMBEDDING, HEAD
from llama.checkpoint.formats.meta_files import file_name
from llama.checkpoint.formats.meta_layout import MetaLayout, Slot
from llama.checkpoint.formats.params import ffn_dim, implied_rope_factor
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers.output_file import Checklist, Plan, TextFile
from llama.checkpoint.writers.output_tensor import OutputTensor, Rows
from llama.checkpoint.writers.source import Options, Source, refuse
from llama.checkpoint.writers.torch_archive import TorchFile
from llama.config import ModelConfig, RopeScaling
from llama.errors import UsageError

PARAMS = "params.json"
CHECKLIST = "checklist.chk"
_MOST_HIDDEN_SPLIT_ROWS = 100_000
_MOST_FILES = 100  # two digits in a name
# What Meta published; the first that gives the width is written.
_PUBLISHED_WIDTHS = ((256, None), (256, 1.5), (4096, 1.3), (1024, 1.3), (4096, 1.2))


def plan(reader: CheckpointReader, options: Options) -> Plan:
    """The files. Raises UsageError for a model that the format cannot hold or cut so."""
    config, n_files = reader.config, options.shards or 1
    _refuse(config)
    if n_files > _MOST_FILES:
        raise UsageError(f"--shards {n_files} exceeds {_MOST_FILES}, which two digits can count")
    layout = MetaLayout(config, n_files=n_files, embedding_dim=_embedding_dim(config, options))
    source = Source(reader, "interleaved", options.dtype)
    slots = {name: _slot(name, layout) for name in reader.tensors}
    weights = [
        TorchFile(file_name(number), _content(source, slots, layout, number))
        for number in range(n_files)
    ]
    # As in Meta's own files of a 405B model: every file has a KV head, and params.json counts them.
    params = _params(replace(config, n_kv_heads=max(config.n_kv_heads, n_files)))
    listed = [file.name for file in weights]
    return Plan(weights, [TextFile.json(PARAMS, params), Checklist(CHECKLIST, [*listed, PARAMS])])


def _refuse(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    has_own_bands = scaling is not None and scaling != RopeScaling(
        factor=scaling.factor, high_freq_factor=scaling.high_freq_factor
    )
    is_gpt2 = config.architecture == "gpt2"
    refuse(
        config,
        "meta",
        {
            "it has learned positions and biases": is_gpt2,
            "it has biases": not is_gpt2 and (config.attention_bias or config.mlp_bias),
            "it has a sliding window": config.sliding_window is not None,
            f"its head_dim {config.head_dim} is not dim / n_heads": not is_gpt2
            and config.head_dim * config.n_heads != config.dim,
            "its RoPE is scaled otherwise than Llama 3's": has_own_bands,
        },
        possible="--to hf, --to megatron" if is_gpt2 else "--to hf, --to mistral (no biases)",
    )


def _embedding_dim(config: ModelConfig, options: Options) -> int:
    if options.embedding_split is not None:
        return 0 if options.embedding_split == "vocab" else 1
    return 0 if config.vocab_size > _MOST_HIDDEN_SPLIT_ROWS else 1


def _slot(name: str, layout: MetaLayout) -> Slot:
    slot = layout.slot(name)
    assert slot is not None, name
    if layout.file_shape(slot) is None:
        size = layout.full_shape(slot)[slot.dim or 0]
        raise UsageError(
            f"--shards {layout.n_files} cannot share the {size} of {name} evenly, heads whole; use "
            f"{' or '.join(str(n) for n in _possible(layout, slot))}"
        )
    return slot


def _possible(layout: MetaLayout, slot: Slot) -> list[int]:
    """Numbers of files, none above the number of heads, that can share `slot`."""
    numbers = range(1, min(_MOST_FILES, layout.config.n_heads) + 1)
    return [n for n in numbers if replace(layout, n_files=n).file_shape(slot) is not None]


def _content(
    source: Source, slots: Mapping[str, Slot], layout: MetaLayout, number: int
) -> dict[str, OutputTensor]:
    """What file `number` holds, in the order of Meta's files."""
    content = {
        name: source.output(name, _part(source, name, slot, layout, number))
        for name, slot in slots.items()
    }
    is_cut_alike = layout.n_files == 1 or slots[EMBEDDING].dim == slots[HEAD].dim
    if source.is_tied and is_cut_alike:
        content[HEAD] = content[EMBEDDING]  # two names, stored once, as in Llama 3.2
    return content


def _part(source: Source, name: str, slot: Slot, layout: MetaLayout, number: int) -> Rows:
    shape = layout.file_shape(slot)
    assert shape is not None, name
    if slot.dim is None:
        return source.rows(name)
    length = shape[slot.dim]
    start = number // layout.copies(slot) * length
    return source.rows(name, dim=slot.dim, start=start, length=length)


def _params(config: ModelConfig) -> dict[str, Any]:
    """Keys that Meta's ModelArgs takes, and no other."""
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        **feed_forward_params(config.dim, config.ffn_dim),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is None:
        return params
    params["use_scaled_rope"] = True
    # Older ModelArgs lack these two keys, so what Meta's own files leave out is left out.
    if scaling.factor != implied_rope_factor(config.dim):
        params["rope_scaling_factor"] = scaling.factor
    if scaling.high_freq_factor != RopeScaling.high_freq_factor:
        params["rope_high_freq_factor"] = scaling.high_freq_factor
    return params


def feed_forward_params(dim: int, wanted: int) -> dict[str, Any]:
    """Values from which Meta's formula, all that ModelArgs has, makes the width `wanted`."""
    plain = ffn_dim(dim, multiple_of=1, multiplier=None)
    # Rounding up to a multiple of the width itself gives it for whatever is not above it.
    own = (wanted, None if plain <= wanted else max(wanted / plain / 2, 1.5 / plain))
    for multiple_of, multiplier in (*_PUBLISHED_WIDTHS, own):
        if ffn_dim(dim, multiple_of=multiple_of, multiplier=multiplier) == wanted:
            values = {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
            return {key: value for key, value in values.items() if value is not None}
    raise AssertionError(f"no formula gives the width {wanted} of dim {dim}")
