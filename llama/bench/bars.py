"""What a run is held against: ratios of two figures of one case, since machines differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llama.bench.contestant import Contestant, one_process, peer, ranks
from llama.bench.figure import Figure

LIMIT: Literal["limit"] = "limit"


@dataclass(frozen=True)
class Bar:
    """`ours` over `against`: another contestant, the machine's limit, or 1 for what is a ratio
    already. `is_most` turns "at least" round.
    """

    text: str
    shape: str
    case: str
    metric: str
    ours: Contestant
    against: Contestant | Literal["limit"] | None
    bar: float
    is_most: bool = False


@dataclass(frozen=True)
class Verdict:
    """`ratio` None: one of the two was not measured in this run."""

    bar: Bar
    ratio: float | None

    @property
    def is_met(self) -> bool | None:
        if self.ratio is None:
            return None
        return self.ratio <= self.bar.bar if self.bar.is_most else self.ratio >= self.bar.bar

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.is_met}


def judge(bar: Bar, figures: Sequence[Figure]) -> Verdict:
    ours = _find(bar, bar.ours, figures)
    if ours is None:
        return Verdict(bar, None)
    if bar.against is None:
        return Verdict(bar, ours.median)
    if isinstance(bar.against, Contestant):
        theirs = _find(bar, bar.against, figures)
        return Verdict(bar, None if theirs is None else ours.median / theirs.median)
    return Verdict(bar, ours.share)


def _find(bar: Bar, contestant: Contestant, figures: Sequence[Figure]) -> Figure | None:
    for figure in figures:
        wanted = (bar.case, bar.shape, bar.metric, contestant)
        if (figure.case, figure.shape, figure.metric, figure.contestant) == wanted:
            return figure
    return None


def all_bars(n_cores: int, *, device: str = "cpu") -> list[Bar]:
    """Of a machine with so many cores, or of a GPU."""
    return (
        _gpu_bars(n_cores)
        if device == "cuda"
        else [*_model_bars(n_cores), *_narrow_bars(n_cores), *_part_bars(n_cores)]
    )


def _model_bars(n_cores: int) -> list[Bar]:
    one, two = (make("float32", n_cores=n_cores) for make in (one_process, ranks))
    cpp, hf = (peer(name, "float32", n_cores=n_cores) for name in ("llama.cpp", "transformers"))

    def fp32(
        ours: Contestant, metric: str, against: Contestant | Literal["limit"], bar: float
    ) -> Bar:
        other: str = against.engine if isinstance(against, Contestant) else "memory"
        text = f"1.1 B float32 {metric}, {_where(ours)}, against {other}"
        return Bar(text, "1b", "float32", metric, ours, against, bar)

    return [
        fp32(two, "decode-1", LIMIT, 0.93),
        fp32(one, "decode-1", LIMIT, 0.93),
        fp32(two, "decode-1", hf, 1.6),
        fp32(one, "decode-1", hf, 1.6),
        fp32(two, "decode-1", cpp, 0.95),
        fp32(one, "decode-1", cpp, 0.95),
        fp32(two, "decode-8", cpp, 0.8),
        fp32(one, "decode-8", cpp, 0.8),
        fp32(two, "prefill-512", cpp, 0.95),
        fp32(one, "prefill-512", cpp, 0.95),
    ]


def _narrow_bars(n_cores: int) -> list[Bar]:
    """Weights in 16 and 8 bits. Q8_0 rounds what it multiplies with too, as int8_dynamic does."""
    cpp16, cpp8 = (peer("llama.cpp", stored, n_cores=n_cores) for stored in ("float16", "q8_0"))
    half = [
        make(dtype, n_cores=n_cores)
        for dtype in ("bfloat16", "float16")
        for make in (ranks, one_process)
    ]
    int8 = [
        ranks("float32", n_cores=n_cores, quantize=method) for method in ("int8_dynamic", "int8")
    ]
    return [
        *(
            Bar(
                f"1.1 B {ours.dtype} decode-1, {_where(ours)}, against llama.cpp F16",
                "1b",
                "half",
                "decode-1",
                ours,
                cpp16,
                0.8,
            )
            for ours in half
        ),
        *(
            Bar(
                f"1.1 B {ours.quantize} decode-1, {_where(ours)}, against llama.cpp Q8_0",
                "1b",
                "quantized",
                "decode-1",
                ours,
                cpp8,
                0.9,
            )
            for ours in int8
        ),
    ]


def _where(contestant: Contestant) -> str:
    return f"{contestant.n_ranks} ranks" if contestant.n_ranks > 1 else "one process"


def _part_bars(n_cores: int) -> list[Bar]:
    shm, gloo = (
        ranks("float32", n_cores=n_cores, transport=transport) for transport in ("shm", "gloo")
    )
    one_thread = Contestant("llama", "float32", 1)
    staged = Contestant("llama", "float32", 1, pp=2, transport="shm")
    bars = [
        Bar(
            f"110 M float32 decode-1, {shm.n_ranks} ranks, shm against gloo",
            "110m",
            "small",
            "decode-1",
            shm,
            gloo,
            2.5,
        )
    ]
    for name in ("8-requests-decode", "8-requests-prompt"):
        text = f"110 M, pp 2 × 1 thread against 1 thread, {name}"
        bars.append(Bar(text, "110m", "pipeline", name, staged, one_thread, 1.8))
    for name in ("8-requests-decode", "8-requests-prompt"):
        text = f"110 M, pp 2: busy share of the idler stage, {name}"
        bars.append(Bar(text, "110m", "pipeline", f"{name} busy share", staged, None, 0.9))
    bars += [
        Bar(
            f"110 M: what the engine adds to the model's forward pass, {_where(ours)}",
            "110m",
            "overhead",
            "decode-1 overhead",
            ours,
            None,
            0.10,
            is_most=True,
        )
        for ours in (one_process("float32", n_cores=n_cores), shm)
    ]
    return bars


def _gpu_bars(n_cores: int) -> list[Bar]:
    ours = one_process("bfloat16", n_cores=n_cores)
    hf = peer("transformers", "bfloat16", n_cores=n_cores)
    return [
        Bar("7 B bfloat16 decode-1 against memory", "7b", "gpu-7b", "decode-1", ours, LIMIT, 0.80),
        Bar("7 B bfloat16 decode-1 against transformers", "7b", "gpu-7b", "decode-1", ours, hf, 3),
        Bar("1 B bfloat16 decode-1 against memory", "1b", "gpu-1b", "decode-1", ours, LIMIT, 0.70),
    ]
