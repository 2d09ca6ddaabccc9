"""A Python program in this process, as if an interpreter had just been started for it.

What a program can tell apart is that torch, and what came with it, has been imported before. For a
forked process: what it inherited is put back to what `python -u program` would find.
"""

from __future__ import annotations

import atexit
import builtins
import ctypes
import io
import os
import pkgutil
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module, invalidate_caches
from importlib.machinery import BuiltinImporter, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any, NoReturn, TextIO, cast

OWN_PACKAGES = ("launch", "llama")
_UNEXPECTED = 1


def forget_signal_handlers() -> None:
    """Dispositions as after an exec: what was ignored stays so, handlers are gone."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_as_fresh(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Run (python, "-u", program, ...) to its end, which is that of this process."""
    _, _, *program = words
    os.environ.clear()
    os.environ.update(environ)
    sys.orig_argv[:] = words
    _open_streams()
    _draw_afresh()
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    failure: BaseException | None = None
    try:
        _run(program, vars(main))
    except BaseException as error:
        failure = error
    status = 0
    if isinstance(failure, SystemExit):
        status = _status_of(failure)
    elif failure is not None:  # shown out here: an error of a hook shall not name it as its context
        status = _show(failure)
    if isinstance(failure, KeyboardInterrupt):
        _end_by_interrupt()
    # the whole of the interpreter's own end: threads, atexit, files that nobody has closed
    ctypes.pythonapi.Py_Exit(ctypes.c_int(status))
    raise AssertionError("Py_Exit returned")


def _draw_afresh() -> None:
    """New random states, where all ranks would draw the same numbers; `random` sees to its own."""
    if "numpy.random" in sys.modules:
        import_module("numpy.random").seed()
    if "torch" in sys.modules:
        import_module("torch").default_generator.seed()


def set_path(folder: str | None) -> None:
    """Have `folder` as sys.path[0]; modules of ours that are now found elsewhere are forgotten."""
    if not getattr(sys.flags, "safe_path", False) and folder is not None:
        sys.path[0] = folder
    sys.path_importer_cache.clear()
    invalidate_caches()
    for package in OWN_PACKAGES:
        loaded = {
            name: module
            for name, module in sys.modules.items()
            if name == package or name.startswith(f"{package}.")
        }
        if not loaded:
            continue
        for name in loaded:
            del sys.modules[name]
        spec = None
        with suppress(ImportError, ValueError):
            spec = find_spec(package)
        if spec is not None and spec.origin == loaded[package].__file__:
            sys.modules.update(loaded)


def first_path(program: Sequence[str]) -> str:
    """What Python puts before all else on sys.path for `program`."""
    if program[0] == "-c":
        return ""
    if program[0] == "-m":
        return os.getcwd()
    if pkgutil.get_importer(program[0]) is not None:  # a folder or zip file
        return os.path.join(os.getcwd(), program[0])
    return os.path.dirname(os.path.realpath(program[0]))


def _run(program: Sequence[str], names: dict[str, Any]) -> None:
    kind = program[0]
    set_path(first_path(program))
    sys.argv[:] = [kind, *program[2:]] if kind in ("-c", "-m") else program
    if kind == "-c":
        names.update(__loader__=BuiltinImporter)
        exec(compile(program[1], "<string>", "exec", dont_inherit=True), names)
    elif kind == "-m":
        runpy._run_module_as_main(program[1])  # type: ignore[attr-defined]
    elif pkgutil.get_importer(kind) is not None:
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
    else:
        file = os.path.join(os.getcwd(), kind)
        names.update(__file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file))
        with io.open_code(file) as source:
            code = compile(source.read(), file, "exec", dont_inherit=True)
        exec(code, names)


def _open_streams() -> None:
    """The standard streams of `python -u` on the files that now have their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _open(fd, name, like=getattr(sys, f"__{name}__"))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _open(fd: int, name: str, *, like: TextIO | None) -> TextIO | None:
    mode = "w" if fd else "r"
    try:
        raw = io.FileIO(fd, mode, closefd=False)
    except OSError:  # the launcher had been started without it
        return None
    raw.name = f"<{name}>"
    stream: Any = io.TextIOWrapper(
        io.BufferedReader(raw) if fd == 0 else raw,
        encoding=like.encoding if like else None,
        errors=like.errors if like else None,
        newline="\n" if fd else None,
        write_through=True,
    )
    stream.mode = mode
    return cast(TextIO, stream)


def _status_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{error.code}\n")
    return _UNEXPECTED


def _show(error: BaseException) -> int:
    """Have the excepthook say what nobody caught, without frames of ours; the exit status."""
    error.with_traceback(_without_own_frames(error.__traceback__))
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as asked:
        return _status_of(asked)
    except BaseException as problem:
        problem.with_traceback(_without_own_frames(problem.__traceback__))
        with suppress(BaseException):
            sys.stderr.write("Error in sys.excepthook:\n")
            sys.__excepthook__(type(problem), problem, problem.__traceback__)
            sys.stderr.write("\nOriginal exception was:\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
    return _UNEXPECTED


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _end_by_interrupt() -> NoReturn:
    """As Python ends after Ctrl-C: by the signal, which tells a shell to stop as well."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(128 + signal.SIGINT)
