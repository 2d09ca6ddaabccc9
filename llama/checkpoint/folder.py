"""The files of a checkpoint's folder by their names inside it, and what they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.formats.dcp_metadata import METADATA
from llama.checkpoint.reader import CheckpointReader
from llama.errors import CheckpointError

_CONFIGURATION = re.compile(
    r"params\.json|config\.json|megatron_args\.json|.+\.index\.json|\.metadata"
    r"|latest_checkpointed_iteration\.txt"
)
_TOKENIZER = re.compile(
    r"(original/)?tokenizer\.model|tokenizer\.model\.v.*|tokenizer\.json"
    r"|(gpt2-)?(vocab\.json|merges\.txt)|tokenizer_config\.json|special_tokens_map\.json|generation_config\.json"
)


def files_below(folder: Path) -> list[str]:
    """Every file below `folder`, sorted, but of hidden ones only DCP's. Raises CheckpointError.

    Folders that are links are not entered.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (name for name in names if not name.startswith(".") or name == METADATA)
        found += [os.path.join(parent, name) for name in shown]
    return sorted(os.path.relpath(path, folder) for path in found)


def checked_files(reader: CheckpointReader) -> list[str]:
    """All that the answers depend on: the files that hold tensors, and their configuration.

    Raises CheckpointError as NamesInside.of.
    """
    names = NamesInside(reader.folder)
    weights = {name for tensor in reader.tensors.values() for name in names.of(tensor)}
    return sorted({*weights, *configuration_files(reader.folder, weights)})


def configuration_files(folder: Path, weights: Iterable[str]) -> list[str]:
    """Those that say what the tensors in the files `weights` are, and those of the tokenizer.

    They are looked for where the formats do: in `folder`, and on the way to the weights.
    """
    places = {PurePath(), *(place for name in weights for place in PurePath(name).parents)}
    return [
        name
        for name in files_below(folder)
        if is_tokenizer_file(name)
        or (PurePath(name).parent in places and _CONFIGURATION.fullmatch(PurePath(name).name))
    ]


def is_tokenizer_file(name: str) -> bool:
    """Whether `name`, a path inside a checkpoint's folder, is what a tokenizer is made from."""
    return _TOKENIZER.fullmatch(name) is not None


class NamesInside:
    """What the files below a folder are called in it, also where they are links to other places."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = frozenset(files_below(folder))
        self._by_place = {os.path.realpath(folder / name): name for name in self._names}

    def of(self, tensor: StoredTensor) -> tuple[str, ...]:
        """The files that hold parts of `tensor`, each once.

        Raises CheckpointError for a file without a name: one that is hidden, or reached through a
        linked folder that leads elsewhere.
        """
        return tuple(dict.fromkeys(self._name(path) for path in tensor.paths))

    def _name(self, path: Path) -> str:
        name = os.path.relpath(path, self._folder)
        if name in self._names:
            return name
        place = os.path.realpath(path)
        if place not in self._by_place:
            raise CheckpointError(
                f"{path} holds weights but is hidden or outside {self._folder}, so no manifest can "
                f"list it; put the file itself into the folder under a plain name"
            )
        return self._by_place[place]


def _refuse(error: OSError) -> None:
    raise CheckpointError(f"cannot list {error.filename}: {error.strerror}") from error
