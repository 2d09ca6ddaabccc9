"""The pickle machine: what it reads, what it refuses, and that nothing a file names is ever run."""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama.checkpoint.files import unpickle as subject
from llama.checkpoint.files.byte_stream import ByteStream
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.unpickle import PERSISTENT_ID, Global, Record, unpickle
from llama.errors import CheckpointError

ALLOWED = ("collections.OrderedDict", "argparse.Namespace", "builtins.set", "datetime.date")


def read(content: bytes, folder: Path) -> object:
    path = folder / "pickled"
    path.write_bytes(content)
    file = DataFile(path)
    return unpickle(ByteStream(file, 0, file.size), path, allowed=ALLOWED.__contains__)


def message_of(content: bytes, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(content, folder)
    assert str(folder / "pickled") in str(caught.value)
    assert "weights_only" not in str(caught.value)
    return str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**127), 2**127) | st.floats(allow_nan=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(-(2**31), 2**31), inner, max_size=4),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=PLAIN, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values_arrive_as_they_were(
    value: object, protocol: int, tmp_path_factory: Any
) -> None:
    assert read(pickle.dumps(value, protocol), tmp_path_factory.getbasetemp()) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_shares_what_was_shared(protocol: int, tmp_path: Path) -> None:
    inner = [1, "a", 2.5, None, True, (3, 4, 5, 6)]
    value = {"a": inner, "b": inner, "c": ()}
    found: Any = read(pickle.dumps(value, protocol), tmp_path)
    assert found == value
    assert found["a"] is found["b"]


def test_objects_become_records(tmp_path: Path) -> None:
    ordered = collections.OrderedDict([("a", 1), ("b", 2)])
    found: Any = read(pickle.dumps([ordered, argparse.Namespace(x=1)], 2), tmp_path)
    first, second = found
    assert (first.name, first.args) == ("collections.OrderedDict", ())
    assert first.items == [("a", 1), ("b", 2)]
    assert (second.name, second.state) == ("argparse.Namespace", {"x": 1})


def test_a_set_is_a_list(tmp_path: Path) -> None:
    assert sorted(read(pickle.dumps({3, 4}, 4), tmp_path)) == [3, 4]  # type: ignore[type-var]


def test_a_class_is_a_global_and_a_persistent_id_a_record(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", 7) if value is Ellipsis else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([collections.OrderedDict, ...])
    found: Any = read(buffer.getvalue(), tmp_path)
    assert found[0] == Global("collections.OrderedDict")
    assert isinstance(found[1], Record)
    assert (found[1].name, found[1].args) == (PERSISTENT_ID, (("storage", 7),))


class Payload:
    """Calls `function` when it is unpickled without protection."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


CALLS: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
    "posix.system": (os.system, ("touch {marker}",)),
    "builtins.eval": (builtins.eval, ("open('{marker}', 'w')",)),
    "builtins.exec": (builtins.exec, ("open('{marker}', 'w')",)),
    "builtins.getattr": (builtins.getattr, ("{marker}", "upper")),
    "builtins.__import__": (builtins.__import__, ("antigravity",)),
    "subprocess.Popen": (subprocess.Popen, (["touch", "{marker}"],)),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name(name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    function, args = CALLS[name]
    filled = [arg.format(marker=marker) if isinstance(arg, str) else arg for arg in args]
    content = pickle.dumps({"a": Payload(function, *filled)}, protocol)
    message = message_of(content, tmp_path)
    in_python_2 = name.replace("builtins", "__builtin__").replace("subprocess", "commands")
    assert f"({name})" in message or f"({in_python_2})" in message
    assert "refused, because loading it could run code" in message
    assert not marker.exists()


def test_the_payload_of_these_tests_is_live(tmp_path: Path) -> None:
    """Else the absent marker above would prove nothing."""
    content = pickle.dumps(Payload(os.system, f"touch {tmp_path / 'marker'}"))
    code = f"import pickle; pickle.loads({content!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert (tmp_path / "marker").exists()


REFUSED = {
    "dotted name": (
        b"\x80\x04\x8c\x0bcollections\x8c\x12OrderedDict.update\x93.",
        "OrderedDict.up",
    ),
    "computed name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "(os.system)"),
    "control characters": (b"c\x1b[31mos\nsystem\n.", r"'\x1b[31mos.system'"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "INST": (b"(S'x'\nios\nsystem\n.", "INST"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "text persistent id": (b"Pabc\n.", "PERSID"),
    "buffer out of band": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "call of a call": (b"ccollections\nOrderedDict\n)R)R.", "no pickle"),
    "call with a list": (b"ccollections\nOrderedDict\n]R.", "no pickle"),
    "state of a class": (b"ccollections\nOrderedDict\n}b.", "no pickle"),
    "state of a list": (b"]}b.", "no pickle"),
    "list as key": (b"}]Ns.", "no pickle"),
    "nested tuple as key": (b"}))\x85\x85\x85Ns.", "no pickle"),
    "items of a number": (b"K\x01(NNu.", "no pickle"),
    "odd items": (b"}(Nu.", "no pickle"),
    "append to a tuple": (b")Na.", "no pickle"),
    "name of a number": (b"K\x01K\x02\x93.", "no pickle"),
    "unknown memo": (b"h\x05.", "no pickle"),
    "empty stack": (b".", "no pickle"),
    "mark missing": (b"t.", "no pickle"),
    "no end": (b"]", "no pickle"),
    "unknown opcode": (b"\xff.", "no pickle"),
    "nothing": (b"", "no pickle"),
    "half a string": (b"X\xff\x00\x00\x00abc.", "no pickle"),
    "a string of 4 GiB": (b"\x80\x04X\xff\xff\xff\xffabc.", "no pickle"),
    "bytes of 2**62": (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".", "no pickle"),
    "endless line": (b"c" + b"x" * 70_000 + b"\nname\n.", "no pickle"),
    "huge number": (b"\x8b\x00\x01\x00\x00" + b"\x7f" * 256 + b".", "no pickle"),
    "digits": (b"L" + b"9" * 5000 + b"L\n.", "no pickle"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_torch_file_has_is_refused(kind: str, tmp_path: Path) -> None:
    content, expected = REFUSED[kind]
    assert expected in message_of(content, tmp_path)


def test_a_huge_memo_index_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        assert "no pickle" in message_of(b"\x80\x02]r\xff\xff\xff\xff.", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opcode", [b"]", b"N0", b"]2", b"("])
def test_the_number_of_steps_is_bounded(
    opcode: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "MAX_OPCODES", 1000)
    assert "no pickle" in message_of(opcode * 1001 + b".", tmp_path)


def same_hash(n_keys: int) -> list[int]:
    return [number * (2**61 - 1) for number in range(1, n_keys + 1)]


@pytest.mark.parametrize("key", ["integer", "tuple", "float", "-1 and -2"])
def test_keys_of_one_hash_are_refused_at_once(key: str, tmp_path: Path) -> None:
    """50,000 of them would take minutes to put into one dict."""
    keys: dict[str, Callable[[int], bytes]] = {
        "integer": long_bytes,
        "tuple": lambda number: b"U\x01a" + long_bytes(number) + b"\x86",
        "float": lambda number: b"G" + struct.pack(">d", float(number)),
        "-1 and -2": lambda number: (  # these two have one hash
            b"("
            + b"".join(b"J" + bytes([255 - (number >> i) % 2]) + b"\xff\xff\xff" for i in range(8))
            + b"t"
        ),
    }
    items = b"".join(keys[key](number) + b"N" for number in same_hash(50_000))
    began = time.monotonic()
    assert "no pickle" in message_of(b"\x80\x02}(" + items + b"u.", tmp_path)
    assert time.monotonic() - began < 30
    few = b"\x80\x02}(" + b"".join(long_bytes(number) + b"N" for number in range(9)) + b"u."
    assert read(few, tmp_path) == dict.fromkeys(range(9))


def long_bytes(number: int) -> bytes:
    content = pickle.encode_long(number)
    return b"\x8a" + bytes([len(content)]) + content


def test_memo_numbers_of_one_hash_are_refused_at_once(tmp_path: Path) -> None:
    puts = b"".join(b"N" + b"p%d\n0" % number for number in same_hash(100_000))
    assert "no pickle" in message_of(puts + b"N.", tmp_path)


def test_a_long_key_is_not_hashed_again_and_again(tmp_path: Path) -> None:
    key = b"(" + b"N" * 500_000 + b"tq\x000"
    assert "no pickle" in message_of(
        b"\x80\x02" + key + b"}" + b"h\x00Ns" * 100_000 + b".", tmp_path
    )


def test_keys_of_texts_and_two_small_numbers_are_read(tmp_path: Path) -> None:
    value = {("a", 7, 2**32 - 1): 1, (None, b"x"): 2, -5: 3, True: 4, (): 5}
    assert read(pickle.dumps(value, 4), tmp_path) == value


def test_a_long_name_is_not_copied_again_and_again(tmp_path: Path) -> None:
    text = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
    content = b"\x80\x04U\x08megatronq\x01" + text + b"q\x02(" + b"h\x01h\x02\x93" * 1000 + b"l."
    tracemalloc.start()
    try:
        path = tmp_path / "pickled"
        path.write_bytes(content)
        stream = ByteStream(DataFile(path), 0, len(content))
        with pytest.raises(CheckpointError, match="no pickle"):
            unpickle(stream, path, allowed=lambda _: True)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_lines_are_fetched_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    real = DataFile.read_into

    def counting(self: DataFile, buffer: memoryview, offset: int) -> None:
        fetched.append(len(buffer))
        real(self, buffer, offset)

    monkeypatch.setattr(DataFile, "read_into", counting)
    content = b"N" + b"p0\n" * 100_000 + b"."
    assert read(content, tmp_path) is None
    assert sum(fetched) < 2 * len(content)


def test_deep_nesting_is_read_without_recursion(tmp_path: Path) -> None:
    depth = 100_000
    value: Any = read(b"]" * depth + b"a" * (depth - 1) + b".", tmp_path)
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


GOOD = pickle.dumps({"a": [1, 2.0, (3, 4)], "b": collections.OrderedDict(x=b"y")}, 2)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.binary(max_size=60)
    | st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1).map(
        lambda flips: bytes({**dict(enumerate(GOOD)), **dict(flips)}.values())
    )
)
def test_any_bytes_are_a_value_or_a_checkpoint_error(content: bytes, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        read(content, folder)
    except CheckpointError as error:
        assert str(folder / "pickled") in str(error)


def test_the_stream_is_left_behind_the_pickle(tmp_path: Path) -> None:
    path = tmp_path / "pickled"
    path.write_bytes(pickle.dumps("first", 2) + pickle.dumps("x" * 200_000, 2) + b"rest")
    stream = ByteStream(DataFile(path), 0, path.stat().st_size)
    assert unpickle(stream, path, allowed=ALLOWED.__contains__) == "first"
    assert unpickle(stream, path, allowed=ALLOWED.__contains__) == "x" * 200_000
    assert stream.read(100) == b"rest"
    assert stream.tell() == path.stat().st_size
