"""`llama plan`: what every rank of a layout would hold, read and send, told from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llama.cli.model_options import Size
from llama.cli.typed import typed
from llama.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(|[kmgt]i?)b?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """Bytes of "80GB" (decimal), "80GiB" (binary) or "80000000000B". Raises UsageError, also for a
    number without a unit: nobody who writes 80 means bytes.
    """
    match = None if text.strip()[-1:].isdigit() else _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        size = int(float(match[1]) * {**_UNITS, **_BINARY_UNITS}[match[2].lower()])
    if not 0 < size < 2**60:
        raise UsageError(f"--gpu_memory cannot be {text!r}; it is a size such as 80GB or 24GiB")
    return size


@dataclass(frozen=True)
class Plan:
    """Print the plan; once it is printed, raise OutOfMemoryError when the layout does not fit.

    `gpu_bytes` None means the memory that this machine has free.
    """

    ckpt_dir: str
    format: str | None
    tp: Size
    pp: Size
    nproc: int | None
    engine_options: Mapping[str, int | str | None]
    dtype: str | None
    device: str | None
    gpu_bytes: int | None
    show_all: bool
    as_json: bool

    def run(self) -> None:
        from llama.checkpoint import open_checkpoint
        from llama.cli import plan_report
        from llama.engine.decide import workload
        from llama.engine.machine import Machine
        from llama.engine.search import all_options, check_fits, pick

        reader = open_checkpoint(self.ckpt_dir, format=self.format)
        device = self.device or ("cuda" if self.gpu_bytes else None)
        work = workload(reader, engine_options=self.engine_options, dtype=self.dtype, device=device)
        gpus = None if self.gpu_bytes is None else Machine.of_gpus(self.gpu_bytes)
        machine = gpus or Machine.here(work.device_type)
        if self.show_all:
            options = all_options(work, machine, tp=self.tp, pp=self.pp, n_ranks=self.nproc)
            plan_report.print_options(work, options, as_json=self.as_json)
            best = min(options, key=lambda option: option.order)
        else:
            choice = pick(work, machine, tp=self.tp, pp=self.pp, n_ranks=self.nproc)
            plan_report.print_choice(reader, work, choice, as_json=self.as_json)
            best = choice.option
        reader.close()
        check_fits(best, work, machine)


@typed
def plan(
    ckpt_dir: str,
    *,
    tp: Size = None,
    pp: Size = None,
    nproc: int | None = None,
    max_seq_len: int | None = None,
    max_batch_size: int = 32,
    max_num_batched_tokens: int = 2048,
    dtype: str | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    gpu_memory: str | None = None,
    format: str | None = None,
    quantize: str | None = None,
    all: bool = False,
    json: bool = False,
) -> Plan:
    """Tell what every rank of a layout would hold, read and send, before anything is loaded.

    Only headers are read. The exit status is 71 when the layout does not fit.

    Args:
        ckpt_dir: folder of the checkpoint
        tp: tensor parallel size, or auto
        pp: pipeline parallel size, or auto
        nproc: ranks to plan for; with auto by default those of this machine, or of --gpu_memory as
            few as will do
        max_seq_len: longest prompt and completion together, in tokens; by default 2048, or as far
            as the positions of the model go
        max_batch_size: sequences that run at once
        max_num_batched_tokens: tokens that one step computes at most
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps; by default cuda where there is a GPU or --gpu_memory
        gpu_memory: memory that each rank has, such as 80GB or 24GiB; by default what is free here
        format: format of the checkpoint, where it is not recognised
        quantize: plan for weights held as int8, int8_dynamic, int4 or fp8, as in int4:64
        all: every layout of 1 to 8 ranks, or of --nproc
        json: one JSON object, with exact numbers, instead of tables
    """
    for name, size in (("tp", tp), ("pp", pp), ("nproc", nproc)):
        if isinstance(size, int) and size < 1:
            raise UsageError(f"--{name} must be at least 1, got {size}")
    if gpu_memory is not None and device not in (None, "cuda"):
        raise UsageError(f"--gpu_memory is the memory of a GPU; it does not go with {device}")
    return Plan(
        ckpt_dir=ckpt_dir,
        format=format,
        tp=tp,
        pp=pp,
        nproc=nproc,
        engine_options={
            "max_seq_len": max_seq_len,
            "max_batch_size": max_batch_size,
            "max_num_batched_tokens": max_num_batched_tokens,
            "quantize": quantize,
        },
        dtype=dtype,
        device=device,
        gpu_bytes=None if gpu_memory is None else parse_bytes(gpu_memory),
        show_all=all,
        as_json=json,
    )
