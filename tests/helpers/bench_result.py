"""A result as a run leaves it, small and without running."""

from __future__ import annotations

from llama.bench.contestant import Contestant, one_process, peer, ranks
from llama.bench.figure import Figure
from llama.bench.machine import MachineFacts
from llama.bench.result import Result

N_CORES = 2
OURS = one_process("float32", n_cores=N_CORES)
RANKS = ranks("float32", n_cores=N_CORES)
CPP = peer("llama.cpp", "float32", n_cores=N_CORES)
STAGES = Contestant("llama", "float32", 1, pp=2, transport="shm")


def stored_result() -> Result:
    """We read at 9 of 10 possible tokens a second, two ranks at 10, llama.cpp at 12."""
    return Result(
        date="2026-01-02T03:04+00:00",
        elapsed_s=90.0,
        machine=MachineFacts("a chip", N_CORES, 8 * 10**9, ("avx2",), None, "Linux 6"),
        versions={"torch": "2.13.0", "llama-cpp-python": "not installed"},
        options={"rounds": 3},
        figures=[*_rates(), *_others()],
        limits=[
            {
                "case": "float32",
                "busy before": 0.5,
                "read with 1": 19.0,
                "copy with 1": 30.0,
                "matmul with 1": 100.0,
            }
        ],
        collectives=[
            {
                "contestant": RANKS.name,
                "transport": "shm",
                "operation": "all_reduce",
                "nbytes": 512,
                "median_us": 1.5,
                "p90_us": 2.0,
                "gb_s": 0.34,
            }
        ],
        agreements=["float32 (1b): all the same"],
        failures=["transformers not measured: pip install transformers"],
    )


def _rates() -> list[Figure]:
    rates = {OURS: 9.0, RANKS: 10.0, CPP: 12.0}
    found = []
    for contestant, rate in rates.items():
        samples = (rate - 1, rate, rate + 2)
        for case in ("float32", "scaling"):
            found.append(
                Figure(case, "1b", contestant, "decode-1", "tokens/s", samples, (10.0,) * 3)
            )
        first = Figure("float32", "1b", contestant, "decode-1 first token", "s", (0.25,))
        load = Figure("float32", "1b", contestant, "load", "s", (1.5,))
        started = Figure("float32", "1b", contestant, "started", "s", (3.5,))
        peak = Figure("float32", "1b", contestant, "peak memory", "bytes", (4e9,))
        found += [first, load, started, peak]
    return found


def _others() -> list[Figure]:
    overhead = Figure("overhead", "110m", OURS, "decode-1 overhead", "share", (0.2, 0.08, 0.09))
    busy = Figure("pipeline", "110m", STAGES, "8-requests-prompt busy share", "share", (0.5,))
    return [overhead, busy]
