"""A pickle read without running anything in it.

The machine of the standard library calls what a file names, and its subclasses still set attributes
on whatever the file likes. This one cannot call: names must be on the caller's list, and what a
file asks to be built from one becomes a `Record` of that name and its arguments. What records mean
is not known here. Work and memory are bounded, whatever the file declares.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.checkpoint.files.byte_stream import ByteStream
from llama.errors import CheckpointError

MAX_BYTES = 64 * 2**20
MAX_OPCODES = 1_000_000
"""A tensor takes about 40."""
_MAX_INTEGER = 2**128
_MAX_KEY = 2**32 - 1
_MAX_KEY_PARTS = 8
_MAX_NAME = 500
"""Characters of a module or of a name in it; a file can push one long text many times."""
PERSISTENT_ID = "a persistent id"

# By the names that pickletools gives. Text of Python 2 arrives as text.
_ARGUMENTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# A set becomes a list: hashing what a file nests would recurse as deep as it likes.
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Global:
    """A class or function that the file names ("torch.FloatStorage")."""

    name: str


@dataclass(eq=False)
class Record:
    """What the file wants to be made by calling `name` with `args`; then `state` and `items`."""

    name: str
    args: tuple[object, ...] = ()
    state: object = None
    items: list[tuple[object, object]] = field(default_factory=list)


class _ForeignError(Exception):
    """A name that is not on the list."""


def unpickle(stream: ByteStream, path: Path, *, allowed: Callable[[str], bool]) -> object:
    """The one object of the pickle that begins where `stream` stands, which is left behind it.

    It consists of dict, list, tuple, str, bytes, numbers, None, Global and Record; `allowed` tells
    which globals ("module.name") may occur. Containers may share or contain each other. Raises
    CheckpointError that names `path`, and the global that is not allowed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of odd escapes in text
            return _Machine(allowed).run(stream)
    except _ForeignError as error:
        raise CheckpointError(
            f"{path} holds more than plain tensors ({error}) and is refused, because loading it "
            f"could run code; get the weights from a publisher that you trust"
        ) from None
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged: its list of tensors is no pickle that "
            f"torch.save writes ({type(error).__name__}); download it again"
        ) from None


class _Machine:
    """A stack, the stacks that marks have put aside, and a memo."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def run(self, stream: ByteStream) -> object:
        opcodes = pickletools.genops(stream)  # type: ignore[arg-type]  # it only reads and tells
        for number, (opcode, argument, _) in enumerate(opcodes):
            if number >= MAX_OPCODES:
                raise ValueError
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self._push_argument(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._stack.append(tuple([self._stack.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        else:
            raise _ForeignError(f"the pickle opcode {name}")

    def _push_argument(self, value: Any) -> None:
        if isinstance(value, int) and not -_MAX_INTEGER < value < _MAX_INTEGER:
            raise ValueError
        self._stack.append(bytes(value) if isinstance(value, bytearray) else value)

    def _nothing(self, _: Any) -> None:
        """PROTO and FRAME only announce."""

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        since = self._stack
        self._stack = self._marked.pop()
        return since

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: Any) -> None:
        if not 0 <= int(index) <= MAX_OPCODES:  # the n-th object has the number n
            raise ValueError
        self._memo[int(index)] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def _tuple(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._put_items(items)

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError
        self._stack[-1].extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put_items([key, value])

    def _set_items(self, _: Any) -> None:
        self._put_items(self._since_mark())

    def _put_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, Record):
            target.items.extend(pairs)
            return
        if not isinstance(target, dict):
            raise TypeError
        for key, value in pairs:
            target[checked_key(key)] = value

    def _global(self, argument: Any) -> None:
        self._name(*str(argument).split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        if max(len(module), len(name)) > _MAX_NAME:
            raise ValueError
        full = f"{module}.{name}"
        if not self._allowed(full):
            raise _ForeignError(full[:120] if full.isprintable() else ascii(full[:120]))
        self._stack.append(Global(full))

    def _reduce(self, _: Any) -> None:
        args, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, Global) or not isinstance(args, tuple):
            raise TypeError
        self._stack.append(Record(called.name, args))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Record) or target.state is not None:
            raise TypeError
        target.state = state

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(Record(PERSISTENT_ID, (self._stack.pop(),)))


def checked_key(key: object) -> Any:
    """`key` when it may be one of a dict. Raises TypeError for what is costly to hash.

    Numbers can be chosen so that all have one hash, which makes a dict of them take quadratic time:
    multiples of 2**61 - 1, floats, long tuples of -1 and -2. The hashes of text are random.
    """
    if isinstance(key, Record) or _is_text(key) or _is_small(key, -_MAX_KEY):
        return key
    if isinstance(key, tuple) and len(key) <= _MAX_KEY_PARTS:
        n_numbers = sum(_is_small(part, 0) for part in key)
        n_texts = sum(_is_text(part) for part in key)
        if n_numbers <= 2 and n_numbers + n_texts == len(key):
            return key
    raise TypeError("no key of a dict")


def _is_text(key: object) -> bool:
    return key is None or isinstance(key, str | bytes)


def _is_small(key: object, least: int) -> bool:
    return isinstance(key, int) and least <= key <= _MAX_KEY


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._nothing,
    "FRAME": _Machine._nothing,
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": _Machine._duplicate,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "FROZENSET": _Machine._tuple,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
