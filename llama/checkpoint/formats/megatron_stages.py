"""The tensors of all Megatron ranks put in their places: which layer, which name, which shards.

Layers are counted: those of a file continue those of the stages before it, however uneven. With
virtual stages ("model0", "model1", ...) the first chunk of every rank comes before any second one.
What the tensors make is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.torch_file import load_object
from llama.checkpoint.formats.megatron_args import shown
from llama.checkpoint.formats.megatron_names import Spelling, is_ignored, spelling_of
from llama.checkpoint.formats.megatron_qkv import VERSIONS
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError

Shards = list[FileTensor]
"""One tensor on every tensor rank, in order."""


@dataclass(frozen=True)
class RankContent:
    """What one rank's file holds. `chunks` are its virtual stages, usually one: name -> tensor."""

    path: Path
    version: float
    iteration: int | None
    arguments: Mapping[str, Any]
    chunks: tuple[Mapping[str, FileTensor], ...]
    ignored: Mapping[str, str]


@dataclass(frozen=True)
class MegatronModel:
    """Canonical (or fused, see megatron_names) name -> shards, for the model and for each layer."""

    top: Mapping[str, Shards]
    layers: Sequence[Mapping[str, Shards]]

    @property
    def tp_size(self) -> int:
        return len(next(iter(self.top.values())))


def load_rank(path: Path) -> RankContent:
    """The content of one rank's file; no tensor is read.

    Raises CheckpointError when the file is not Megatron's.
    """
    content = load_object(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a Megatron checkpoint")
    version = content.get("checkpoint_version", 0)
    if type(version) not in (int, float) or version not in VERSIONS:
        raise CheckpointError(
            f"{path}: checkpoint_version is {shown(version)}; known are "
            f"{', '.join(map(str, VERSIONS))} and none"
        )
    arguments, iteration = content.get("args"), content.get("iteration")
    ignored: dict[str, str] = {}
    return RankContent(
        path=path,
        version=float(version),
        iteration=iteration if type(iteration) is int else None,
        arguments=arguments if isinstance(arguments, dict) else {},
        chunks=tuple(_flat(tree, path, ignored) for tree in _trees(content, path)),
        ignored=ignored,
    )


def join(ranks: Mapping[tuple[int, int], RankContent]) -> MegatronModel:
    """The model of all `ranks`, by (tensor rank, pipeline rank), of which none is missing.

    Raises CheckpointError when they are of different checkpoints, or for a tensor not known.
    """
    first = ranks[0, 0]
    for rank in ranks.values():
        for what, one, other in (
            ("checkpoint_version", first.version, rank.version),
            ("iteration", first.iteration, rank.iteration),
            ("number of virtual stages", len(first.chunks), len(rank.chunks)),
        ):
            if one != other:
                raise CheckpointError(
                    f"{first.path} has {what} {shown(one)}, but {rank.path} {shown(other)}; "
                    f"they come from different checkpoints"
                )
    spelling = spelling_of(first.chunks[0])
    tp_ranks = sorted({tp for tp, _ in ranks})
    top: dict[str, Shards] = {}
    layers: list[Mapping[str, Shards]] = []
    for chunk in range(len(first.chunks)):
        for pp_rank in sorted({pp for _, pp in ranks}):
            stage = _stage([ranks[tp, pp_rank] for tp in tp_ranks], chunk)
            _append(stage, spelling, top, layers)
    return MegatronModel(top, layers)


def _trees(content: Mapping[Any, object], path: Path) -> Iterator[object]:
    if "model" in content:
        yield content["model"]
        return
    number = 0
    while f"model{number}" in content:
        yield content[f"model{number}"]
        number += 1
    if number == 0:
        held = shortened(sorted(k for k in content if isinstance(k, str))) or "nothing"
        raise CheckpointError(f"{path} has no model, so it is not Megatron's; it holds {held}")


def _flat(model: object, path: Path, ignored: dict[str, str]) -> dict[str, FileTensor]:
    """Tensors by dotted name, whatever was nested; adds what is no part of it to `ignored`."""
    found: dict[str, FileTensor] = {}
    waiting: list[tuple[str, object]] = [("", model)]
    while waiting:
        name, value = waiting.pop()
        reason = is_ignored(name)
        if reason is not None:
            ignored[name] = reason
        elif isinstance(value, FileTensor) and 1 <= len(value.shape) <= 2:
            found[name] = value
        elif isinstance(value, dict):  # load_object has bounded how deep and how many
            inner = [(_joined(name, key, path), held) for key, held in value.items()]
            waiting.extend(reversed(inner))
        else:
            what = f"{name[:200] or 'the model'} is a {type(value).__name__}"
            raise CheckpointError(f"{path}: {what}, not a matrix, a vector or a dict of such")
    return found


def _joined(prefix: str, key: object, path: Path) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"{path}: {prefix[:200] or 'the model'} has a key that is no text")
    return f"{prefix}.{key[:200]}" if prefix else key[:200]


def _stage(ranks: Sequence[RankContent], chunk: int) -> dict[str, Shards]:
    """Stored name -> shards of one stage; every tensor rank must hold the same names and shapes."""
    first, *others = ranks
    stage = {name: [tensor] for name, tensor in first.chunks[chunk].items()}
    for rank in others:
        held = rank.chunks[chunk]
        odd = sorted(stage.keys() ^ held.keys())
        if odd:
            raise CheckpointError(
                f"{first.path} and {rank.path} do not hold the same tensors: only one of them has "
                f"{shortened(odd)}; they come from different checkpoints"
            )
        for name, shards in stage.items():
            if held[name].shape != shards[0].shape:
                raise CheckpointError(
                    f"{name} has shape {shards[0].shape} in {first.path}, but {held[name].shape} "
                    f"in {rank.path}; they come from different checkpoints"
                )
            shards.append(held[name])
    return stage


def _append(
    stage: Mapping[str, Shards],
    spelling: Spelling,
    top: dict[str, Shards],
    layers: list[Mapping[str, Shards]],
) -> None:
    """Put the tensors of the next `stage` into `top` and behind `layers`."""
    own: dict[int, dict[str, Shards]] = {}
    for stored, shards in stage.items():
        parsed = spelling.parse(stored)
        path = shards[0].path
        if parsed is None:
            raise CheckpointError(
                f"{path} holds {stored}, which neither a GPT-2 nor a Llama of Megatron-LM "
                f"({spelling.name} names) has"
            )
        number, name = parsed
        place = top if number is None else own.setdefault(number, {})
        if name in place:
            raise CheckpointError(f"{path} holds {stored} ({name}) for the second time")
        place[name] = shards
    gaps = [str(number) for number in range(max(own, default=-1) + 1) if number not in own]
    if gaps:
        path = next(iter(stage.values()))[0].path
        raise CheckpointError(
            f"{path} lacks layer {shortened(gaps)} of the {max(own) + 1} that it counts (layers "
            f"count from 0 in every stage); it is incomplete"
        )
    layers.extend(own[number] for number in sorted(own))
