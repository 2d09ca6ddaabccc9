"""What the names in a pickle of torch.save stand for: dense tensors, dicts, and things unread.

Only plain dense tensors are made; what else training leaves in a file (arguments, random states)
becomes data or an `Opaque` of which no more than the name is kept. Where storages lie is not known
here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama.checkpoint.files.byte_stream import ByteStream
from llama.checkpoint.files.unpickle import PERSISTENT_ID, Global, Record, checked_key, unpickle
from llama.errors import CheckpointError

MAX_DEPTH = 100
MAX_VALUES = 4_000_000
"""Every container counts what it holds once for each place that it stands in. All dicts together
are made of no more: a few bytes of a file make one of its lists a dict again and again."""
MAX_DIMS = 64  # torch has no more

_DTYPES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in _DTYPES.items()}
_DICT = "collections.OrderedDict"
_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Harmless, and refused by what they are.
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without memory (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_tensor_v3": "a tensor of float8 or of another new type",
}
_TYPED = "torch._tensor._rebuild_from_type_v2"
_TYPES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
_PLAIN = frozenset({_DICT, *_TENSOR, *_PARAMETER, *STORAGES, _TYPED, *_TYPES, "torch.Size"})
_NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
# What Megatron's files hold beside weights. None of it is run or even looked at.
_OPAQUE = re.compile(
    r"(megatron|apex|fp16)\.[\w.]+|torch\.(device|(b?float|u?int|complex)\d+|bool|half|float|double)"
    r"|numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)|_codecs\.encode"
    r"|pathlib\.(Posix|PurePosix)?Path|signal\.Signals|datetime\.timedelta|_io\.BytesIO"
)


@dataclass(frozen=True)
class Storage:
    """Elements that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    n_elements: int

    @property
    def nbytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


@dataclass(frozen=True)
class DenseTensor:
    """A tensor as the pickle declares it; `offset` and `stride` count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Opaque:
    """Stands for something of which only the name ("megatron.enums.ModelType") was read."""

    name: str


@dataclass(frozen=True)
class Pickled:
    """One object, and by key the storages that its tensors need."""

    value: object
    storages: Mapping[str, Storage]


def read_pickle(stream: ByteStream, path: Path, *, plain: bool) -> Pickled:
    """What the pickle at `stream` holds, with a DenseTensor wherever it has a tensor.

    `plain` admits tensors, dicts, lists, tuples and scalars; else namespaces become dicts, and what
    training programs add becomes Opaque. Raises CheckpointError for anything else, for what is no
    dense tensor, and for nesting beyond any use.
    """

    def allowed(name: str) -> bool:
        if name in _OTHER_TENSORS:
            raise CheckpointError(
                f"{path} holds {_OTHER_TENSORS[name]} ({name}); only plain dense tensors are read"
            )
        return name in _PLAIN or (not plain and _is_extra(name))

    raw = unpickle(stream, path, allowed=allowed)
    reading = _Reading()
    try:
        value, _ = reading.value(raw)
    except (ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path} is damaged or made to do harm: what its pickle makes is {error}"
        ) from None
    return Pickled(value, reading.storages)


def _is_extra(name: str) -> bool:
    return name in _NAMESPACES or _OPAQUE.fullmatch(name) is not None


class _Reading:
    """From what a pickle makes to what it means; every object is read once."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._done: dict[int, tuple[object, Any, int]] = {}
        self._depth = 0
        self._n_pairs = 0

    def value(self, raw: object) -> tuple[Any, int]:
        """The meaning of `raw`, and how many values it holds.

        Raises ValueError, TypeError or IndexError with what is wrong.
        """
        if raw is None or isinstance(raw, str | bytes | int | float):
            return raw, 1
        if id(raw) not in self._done:
            self._depth += 1
            if self._depth > MAX_DEPTH:  # also what contains itself
                raise ValueError("nested too deeply")
            self._done[id(raw)] = (raw, *self._read(raw))  # raw stays, so that its id does
            self._depth -= 1
        _, value, n_values = self._done[id(raw)]
        return value, n_values

    def _read(self, raw: object) -> tuple[Any, int]:
        if isinstance(raw, dict):
            return self._dict(raw.items())
        if isinstance(raw, list | tuple):
            values, n_values = self._all(raw)
            return type(raw)(values), n_values
        if isinstance(raw, Global):
            return Opaque(raw.name), 1
        if not isinstance(raw, Record):
            raise TypeError(f"a {type(raw).__name__}")
        return self._record(raw)

    def _all(self, raw: Iterable[object]) -> tuple[list[Any], int]:
        read = [self.value(item) for item in raw]
        n_values = 1 + sum(size for _, size in read)
        if n_values > MAX_VALUES:
            raise ValueError("too large")
        return [value for value, _ in read], n_values

    def _dict(self, pairs: Collection[tuple[object, object]]) -> tuple[dict[Any, Any], int]:
        self._count_pairs(len(pairs))
        flat = list(pairs)
        values, n_values = self._all(value for _, value in flat)
        keys = [checked_key(key) for key, _ in flat]
        return dict(zip(keys, values, strict=True)), n_values

    def _count_pairs(self, n_pairs: int) -> None:
        self._n_pairs += n_pairs
        if self._n_pairs > MAX_VALUES:
            raise ValueError("too large")

    def _record(self, raw: Record) -> tuple[Any, int]:
        if raw.name == _DICT:
            given = raw.args[0] if raw.args else []
            if not isinstance(given, list):
                raise TypeError("a dict of no pairs")
            self._count_pairs(len(given))
            return self._dict([*((key, value) for key, value in given), *raw.items])
        if raw.name == _TYPED:
            rebuild, _, args = raw.args[:3]
            if not isinstance(rebuild, Global) or rebuild.name == _TYPED:
                raise TypeError("no tensor")
            return self.value(Record(rebuild.name, _tuple(args)))
        if raw.name in _PARAMETER:
            return self.value(raw.args[0])
        if raw.name in _TENSOR:
            return self._tensor(*raw.args[:4]), 1
        if raw.name == "torch.Size":
            return _integers(raw.args[0]), 1
        if raw.name in _NAMESPACES:
            return self._dict(raw.state.items() if isinstance(raw.state, dict) else [])
        if raw.name == PERSISTENT_ID:
            return self._storage(raw), 1
        self._all([raw.args, raw.state, raw.items])  # for the storages inside
        return Opaque(raw.name), 1

    def _tensor(self, storage: object, offset: object, shape: object, stride: object) -> Any:
        sizes, steps = _integers(shape), _integers(stride)
        (first,) = _integers((offset,))
        if len(sizes) != len(steps):
            raise ValueError(f"a tensor of shape {sizes[:9]} and strides {steps[:9]}")
        found = self._storage(storage)
        reach = first + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True)) + 1
        n_elements = math.prod(sizes)
        if n_elements > found.n_elements or (n_elements and reach > found.n_elements):
            raise ValueError(
                f"a tensor of shape {sizes} and strides {steps} from element {first} in a storage "
                f"of {found.n_elements:,} elements"
            )
        return DenseTensor(found, first, sizes, steps)

    def _storage(self, raw: object) -> Storage:
        if not isinstance(raw, Record) or raw.name != PERSISTENT_ID:
            raise TypeError("a tensor without a storage")
        kind, storage, key, _, n_elements, *view = _tuple(raw.args[0])
        if kind != "storage" or not isinstance(storage, Global) or storage.name not in STORAGES:
            raise TypeError("a tensor in a storage of no known type")
        if len(view) > 1 or any(part is not None for part in view):
            raise ValueError("a tensor in a view of a storage, as torch before 0.4 wrote them")
        if not isinstance(key, str):
            raise TypeError("a storage without a name")
        found = Storage(key, STORAGES[storage.name], *_integers((n_elements,)))
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"two tensors that do not agree about storage {key[:80]!a}")
        return found


def _tuple(raw: object) -> tuple[Any, ...]:
    if not isinstance(raw, tuple):
        raise TypeError(f"a {type(raw).__name__} instead of a tuple")
    return raw


def _integers(raw: object) -> tuple[int, ...]:
    """`raw` when it is a tuple of sizes. Bounds them, so that sums and products stay small."""
    if isinstance(raw, Record) and raw.name == "torch.Size":
        raw = raw.args[0]
    sizes = raw if isinstance(raw, list) else _tuple(raw)
    if len(sizes) > MAX_DIMS:
        raise ValueError(f"a tensor of {len(sizes):,} dims, more than {MAX_DIMS}")
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes):
        raise ValueError("a tensor of impossible sizes")
    return tuple(sizes)
