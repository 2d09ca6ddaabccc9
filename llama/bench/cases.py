"""The comparisons: who is measured beside whom, on which shape, at which works.

Which bars they are held against is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from llama.bench.contestant import Contestant, one_process, peer, ranks
from llama.bench.shapes import Shape, find_shape
from llama.bench.task import Program
from llama.bench.work import WORKS, Work
from llama.errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class Case:
    """`contestants` take turns; `most_rounds` keeps what takes long from being repeated often."""

    name: str
    shape: Shape
    contestants: Sequence[Contestant]
    works: Sequence[Work] = ()
    program: Program = "works"
    most_rounds: int | None = None


Make = Callable[[int], Case]
"""A case on a machine with so many cores."""


def works(*names: str) -> tuple[Work, ...]:
    return tuple(WORKS[name] for name in names)


def _all_engines(dtype: str, n_cores: int) -> tuple[Contestant, ...]:
    return (
        one_process(dtype, n_cores=n_cores),
        ranks(dtype, n_cores=n_cores),
        peer("llama.cpp", dtype, n_cores=n_cores),
        peer("transformers", dtype, n_cores=n_cores),
    )


def _float32(n_cores: int) -> Case:
    everybody = _all_engines("float32", n_cores)
    return Case(
        "float32", find_shape("1b"), everybody, works("decode-1", "decode-8", "prefill-512")
    )


def _large(n_cores: int) -> Case:
    everybody = _all_engines("float32", n_cores)
    return Case(
        "large",
        find_shape("1b"),
        everybody,
        works("decode-32", "prefill-2048"),
        most_rounds=1,
    )


def _half(n_cores: int) -> Case:
    contestants = (
        one_process("bfloat16", n_cores=n_cores),
        one_process("float16", n_cores=n_cores),
        ranks("bfloat16", n_cores=n_cores),
        ranks("float16", n_cores=n_cores),
        peer("llama.cpp", "float16", n_cores=n_cores),
        peer("transformers", "bfloat16", n_cores=n_cores),
    )
    return Case("half", find_shape("1b"), contestants, works("decode-1", "decode-8"))


def _quantized(n_cores: int) -> Case:
    contestants = (
        one_process("float32", n_cores=n_cores, quantize="int8"),
        ranks("float32", n_cores=n_cores, quantize="int8"),
        ranks("float32", n_cores=n_cores, quantize="int8_dynamic"),
        ranks("float32", n_cores=n_cores, quantize="int4"),
        peer("llama.cpp", "q8_0", n_cores=n_cores),
    )
    return Case("quantized", find_shape("1b"), contestants, works("decode-1", "decode-8"))


def _small(n_cores: int) -> Case:
    contestants = (
        *_all_engines("float32", n_cores),
        ranks("float32", n_cores=n_cores, transport="gloo"),
    )
    names = ("decode-1", "decode-8", "prefill-512")
    return Case("small", find_shape("110m"), contestants, works(*names))


def _scaling(n_cores: int) -> Case:
    counts = [2**power for power in range(1, n_cores.bit_length()) if 2**power <= n_cores] or [2]
    contestants = [Contestant("llama", "float32", 1)]
    contestants += [Contestant("llama", "float32", count) for count in counts if count <= n_cores]
    contestants += [
        Contestant("llama", "float32", 1, tp=count, transport="shm") for count in counts
    ]
    contestants += [
        Contestant("llama", "float32", 1, pp=count, transport="shm") for count in counts
    ]
    return Case("scaling", find_shape("1b"), contestants, works("decode-1", "decode-8"))


def _pipeline(n_cores: int) -> Case:
    contestants = (
        Contestant("llama", "float32", 1),
        Contestant("llama", "float32", 1, pp=2, transport="shm"),
    )
    names = ("8-requests-decode", "8-requests-prompt")
    return Case("pipeline", find_shape("110m"), contestants, works(*names))


def _overhead(n_cores: int) -> Case:
    contestants = (one_process("float32", n_cores=n_cores), ranks("float32", n_cores=n_cores))
    names = ("decode-1", "decode-8")
    return Case("overhead", find_shape("110m"), contestants, works(*names), program="overhead")


def _collectives(n_cores: int) -> Case:
    contestants = [
        ranks("float32", n_cores=n_cores, transport=transport) for transport in ("shm", "gloo")
    ]
    return Case("collectives", find_shape("tiny"), contestants, program="collectives")


def _gpu(shape: str) -> Make:
    def make(n_cores: int) -> Case:
        contestants = (
            one_process("bfloat16", n_cores=n_cores),
            peer("transformers", "bfloat16", n_cores=n_cores),
        )
        names = ("decode-1", "decode-8", "decode-32", "prefill-512", "prefill-2048")
        return Case(f"gpu-{shape}", find_shape(shape), contestants, works(*names))

    return make


CPU_CASES: Mapping[str, Make] = MappingProxyType(
    {
        "float32": _float32,
        "half": _half,
        "quantized": _quantized,
        "small": _small,
        "overhead": _overhead,
        "pipeline": _pipeline,
        "scaling": _scaling,
        "collectives": _collectives,
        "large": _large,
    }
)
GPU_CASES: Mapping[str, Make] = MappingProxyType(
    {f"gpu-{shape}": _gpu(shape) for shape in ("1b", "7b", "8b")}
)
_QUICK = ("small", "quantized", "overhead", "pipeline", "collectives")
_QUICK_TOKENS = 17
_QUICK_WORKS = ("decode-1", "decode-8", "prefill-512", "8-requests-decode")


def cases(
    *,
    device: str,
    n_cores: int,
    only: str | None = None,
    shape: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    is_quick: bool = False,
) -> list[Case]:
    """What to run. `only` is the name of a case; `shape` takes the place of the cases' own; of us
    only contestants of that `dtype` and `quantize` stay. Quick: the cheap ones, on 110m.

    Raises UnknownNameError for a case or shape that is not known, UsageError when nobody is left.
    """
    table, other = (GPU_CASES, CPU_CASES) if device == "cuda" else (CPU_CASES, GPU_CASES)
    if only is not None and only in other:
        needed = "cpu" if device == "cuda" else "cuda"
        raise UsageError(f"case {only!r} needs --device {needed}, not {device}")
    if only is not None and only not in table:
        raise UnknownNameError(f"unknown case {only!r}; known: {', '.join(table)}")
    names: Sequence[str] = [only] if only else [*table]
    if is_quick and only is None and device == "cpu":
        names = _QUICK
    found = [table[name](n_cores) for name in names]
    shape = shape or ("110m" if is_quick and device == "cpu" else None)
    if shape is not None:
        found = [replace(case, shape=find_shape(shape)) for case in found]
    if is_quick:
        found = [_in_short(case) for case in found]
    ours = {one for case in found for one in case.contestants if one.engine == "llama"}
    found = [_filtered(case, dtype=dtype, quantize=quantize) for case in found]
    found = [case for case in found if any(one.engine == "llama" for one in case.contestants)]
    if not found:
        measured = sorted({f"{one.dtype} {one.quantize or ''}".strip() for one in ours})
        raise UsageError(
            f"no case measures us with dtype {dtype or 'any'} and quantize {quantize or 'any'}; "
            f"known here: {', '.join(measured)}"
        )
    return found


def _in_short(case: Case) -> Case:
    kept = [
        replace(work, new_tokens=min(work.new_tokens, _QUICK_TOKENS))
        for work in case.works
        if work.name in _QUICK_WORKS
    ]
    if case.name == "quantized":
        kept = kept[:1]
    return replace(case, works=kept, most_rounds=1)


def _filtered(case: Case, *, dtype: str | None, quantize: str | None) -> Case:
    def stays(one: Contestant) -> bool:
        if one.engine != "llama":
            return True
        return dtype in (None, one.dtype) and quantize in (None, one.quantize)

    return replace(case, contestants=[one for one in case.contestants if stays(one)])
