"""Hugging Face's format: config.json and the weights in one file or in several with an index.

Safetensors is preferred to .bin where both are. Which name stands for which canonical tensor is
known to `hf_names`, how a file is laid out to `safetensors_file` and `torch_file`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.files import safetensors_file, torch_file
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.names import plain_file
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.hf_config import read_config
from llama.checkpoint.formats.hf_names import canonical_tensors, ignored_reason
from llama.checkpoint.reader import CheckpointReader, Format, make_reader
from llama.checkpoint.wording import short, shortened
from llama.errors import CheckpointError
from llama.files.json_file import read_object

CONFIG = "config.json"
_OURS = re.compile(
    r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?"
)
_MAX_INDEX_BYTES = 4_000_000
"""40,000 names; the index of a Llama of 405 billion parameters has 90,000 bytes."""


@dataclass(frozen=True)
class Container:
    """One kind of weight file: what it is called alone, and how its tensors are found."""

    single: str
    load: Callable[[Path], dict[str, FileTensor]]

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"


CONTAINERS = (
    Container("model.safetensors", safetensors_file.load_tensors),
    Container("pytorch_model.bin", torch_file.load_tensors),
)


def recognises(folder: Path) -> bool:
    """Whether a file in the folder is called like weights of Hugging Face, or their index."""
    return bool(_weight_files(folder))


def open_hf(folder: Path) -> CheckpointReader:
    """The checkpoint in `folder`, opened and checked. Raises CheckpointError."""
    if not os.path.exists(folder / CONFIG):
        raise CheckpointError(f"{folder} lacks {CONFIG}, which describes the model of its weights")
    config = read_config(plain_file(folder, CONFIG))
    container, name, notes = _chosen(folder)
    if name == container.index:
        tensors = _load_indexed(folder, container)
    else:
        tensors = container.load(plain_file(folder, name))
    stored = {name: StoredTensor.of([tensor]) for name, tensor in tensors.items()}
    named = canonical_tensors(stored, config.model, source=str(folder / name))
    return make_reader(
        "hf",
        folder,
        named.config,
        named.tensors,
        ignored=named.ignored,
        warnings=config.warnings,
        notes=(*config.notes, *notes, *named.notes),
        family=config.model_type,
    )


HF = Format(recognises, open_hf)


def _weight_files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if _OURS.fullmatch(path.name))
    except (OSError, ValueError):
        return []


def _chosen(folder: Path) -> tuple[Container, str, tuple[str, ...]]:
    """The container to read, its one file or its index, and what is left aside."""
    found = _weight_files(folder)
    choices = [
        (container, name)
        for container in CONTAINERS
        for name in (container.single, container.index)
        if name in found
    ]
    if not choices:
        what = f"{shortened(found)} but no index" if found else "no weights"
        names = ", ".join(name for kind in CONTAINERS for name in (kind.single, kind.index))
        raise CheckpointError(f"{folder} holds {what}; it needs one of {names}")
    container, name = choices[0]
    others = [other for _, other in choices[1:]]
    notes = (f"{name} is read, {shortened(others)} not",) if others else ()
    return container, name, notes


def _load_indexed(folder: Path, container: Container) -> dict[str, FileTensor]:
    """The tensors of all files that the index names, each from the file that it names."""
    index = plain_file(folder, container.index)
    weight_map = _weight_map(index)
    paths = {name: plain_file(folder, name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise CheckpointError(
            f"{index} needs {len(paths)} files, but {len(paths) - len(missing)} are there: "
            f"{shortened(missing)} missing; download the rest"
        )
    tensors: dict[str, FileTensor] = {}
    for name, path in paths.items():
        held = container.load(path)
        _check_held(index, weight_map, name, held)
        tensors |= {
            key: tensor for key, tensor in held.items() if weight_map.get(key, name) == name
        }
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(
                f"{index}: weight_map gives {name[:120]!r} the file {short(file)}; it must be a "
                f"name"
            )
    return weight_map


def _check_held(
    index: Path, weight_map: Mapping[str, str], file: str, held: Mapping[str, FileTensor]
) -> None:
    """The index and the file must agree; only what no model uses may be in one of them alone."""
    lacking = [name for name, where in weight_map.items() if where == file and name not in held]
    if lacking:
        raise CheckpointError(
            f"{index.parent / file} lacks {shortened(lacking)}, which {index.name} says it holds; "
            f"they are of different downloads"
        )
    extra = [name for name in held if weight_map.get(name) != file and ignored_reason(name) is None]
    if extra:
        raise CheckpointError(
            f"{index.parent / file} holds {shortened(extra)}, which {index.name} does not say; "
            f"they are of different downloads"
        )
