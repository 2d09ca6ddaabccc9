"""The consolidated.NN.pth of one folder: which there are and should be, all of them opened.

A missing file must not look like a wrong setting: the shapes in any one file tell how many there
are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.names import plain_file
from llama.checkpoint.files.torch_file import load_tensors
from llama.checkpoint.formats.params import Params
from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError

# File name -> tensor name -> what this file holds of it.
OpenFiles = Mapping[str, Mapping[str, FileTensor]]

_NAME = re.compile(r"consolidated\.(\d\d|[1-9]\d\d)\.pth")
_NORM = "norm.weight"
_QUERY = "layers.0.attention.wq.weight"
_GATE = "layers.0.feed_forward.w1.weight"


def file_name(number: int) -> str:
    return f"consolidated.{number:02d}.pth"


def numbered_files(folder: Path) -> list[int]:
    """The numbers of the consolidated.NN.pth in `folder`, sorted."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def open_files(folder: Path, params: Params) -> OpenFiles:
    """Every file of the checkpoint, in order.

    Raises CheckpointError when there is none, when one is missing or not of this checkpoint, or
    when one cannot be read or is a link that leads out of `folder`.
    """
    present = numbered_files(folder)
    if not present:
        raise CheckpointError(
            f"no checkpoint files found in {folder}: Meta's format needs {file_name(0)}"
        )
    path, *others = [plain_file(folder, file_name(number)) for number in present]
    first = load_tensors(path)
    _check_count(folder, present, _expected_files(path, first, params))
    files = {path.name: first, **{other.name: load_tensors(other) for other in others}}
    _check_same_names(folder, files)
    return files


def _expected_files(path: Path, tensors: Mapping[str, FileTensor], params: Params) -> int:
    """How many files like the one at `path` make the model that params.json describes."""
    norm = tensors.get(_NORM)
    if norm is not None and norm.shape != (params.dim,):
        raise CheckpointError(
            f"{path}: {_NORM} has shape {norm.shape}, but params.json gives "
            f"dim {params.dim}; params.json belongs to another model"
        )
    by_query = _files_by_rows(path, tensors, _QUERY, params.n_query_rows, "n_heads x head_dim")
    by_gate = _files_by_rows(path, tensors, _GATE, params.ffn_dim, "the feed-forward width")
    if by_query != by_gate:
        raise CheckpointError(
            f"{path}: {by_query} files like this make the model of params.json by {_QUERY}, but "
            f"{by_gate} by {_GATE}; params.json belongs to another model"
        )
    return by_query


def _files_by_rows(
    path: Path, tensors: Mapping[str, FileTensor], name: str, total: int, meaning: str
) -> int:
    """How many files share the `total` rows of tensor `name`, cut by rows in every version."""
    tensor = tensors.get(name)
    if tensor is None:
        held = shortened(tensors) or "nothing"
        raise CheckpointError(f"{path} has no {name}, so it is no Llama model; it holds {held}")
    rows = tensor.shape[0] if tensor.shape else 0
    if not rows or total % rows:
        raise CheckpointError(
            f"{path}: {name} has shape {tensor.shape}, but params.json asks for {total} "
            f"rows ({meaning}) in all files together; params.json belongs to another model"
        )
    return total // rows


def _check_count(folder: Path, present: list[int], expected: int) -> None:
    missing = [file_name(n) for n in range(expected) if n not in present]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise CheckpointError(
            f"{shortened(missing)} {verb} missing in {folder}: {expected} files expected from the "
            f"shapes in {file_name(present[0])}, {len(present)} found; download what is missing"
        )
    if len(present) > expected:
        extra = [file_name(n) for n in present if n >= expected]
        raise CheckpointError(
            f"{folder} holds {len(present)} files, but from the shapes in {file_name(present[0])} "
            f"{expected} make the model of params.json; move {shortened(extra)} away, or get the "
            f"params.json that belongs to these files"
        )


def _check_same_names(folder: Path, files: OpenFiles) -> None:
    (first, tensors), *others = files.items()
    for file, held in others:
        odd = sorted(tensors.keys() ^ held.keys())
        if odd:
            raise CheckpointError(
                f"{folder}: {first} and {file} do not hold the same tensors: only one of them has "
                f"{shortened(odd)}; they come from different checkpoints"
            )
