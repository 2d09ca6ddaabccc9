"""The decode step of one stage as a graph per batch size, replayed with new numbers in its buffers.

A step of a small model on a fast GPU is bound by the launching of its kernels; a graph launches all
of them at once. Whatever a launch depends on must be the same at every replay, so a batch is padded
to the next size that has a graph, and what changes from step to step is read from the device. Who
captures is given: on a CUDA device `cuda_graph`, in tests whatever runs the step again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.config import EngineConfig
from llama.engine.plan import BatchPlan
from llama.kvcache.cache import KVCache
from llama.models.decoder import DecoderStage
from llama.ops.batch import Batch, DeviceTables
from llama.parallel.backend import BackendName

Step = Callable[[], Tensor | None]
Capture = Callable[[Step], tuple[Callable[[], None], Tensor | None]]
"""Runs a step, and gives what runs it again and the tensor that every run leaves its result in."""


def bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that get a graph, ascending: powers of two, from 8 on every eighth number."""
    small = [size for size in (1, 2, 4) if size < max_batch_size]
    return (*small, *range(8, max_batch_size, 8), max_batch_size)


def cuda_graph(step: Step) -> tuple[Callable[[], None], Tensor | None]:
    """Capture `step` after one run outside of the graph, in which libraries set themselves up."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # other threads of this process may go on calling CUDA: the watchdog of NCCL does
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = step()
    return graph.replay, out


@dataclass(frozen=True)
class _Graph:
    """One batch size: `inputs` is where a step's integers go, `hidden` the states of the stage
    before, and `replay` leaves its result in `out`.
    """

    inputs: Tensor
    hidden: Tensor | None
    replay: Callable[[], None]
    out: Tensor | None


def graphs_for(
    stage: DecoderStage,
    cache: KVCache,
    config: EngineConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tp_backend: BackendName,
) -> DecodeGraphs | None:
    """Where graphs can be had and are wanted; None elsewhere.

    Dynamic NTK takes lengths from the host. Sums of `tp_backend` gloo pass through the host, as
    those of ranks that share a GPU do; "none" is a single rank's.
    """
    scaling = stage.config.rope_scaling
    is_dynamic = scaling is not None and scaling.kind == "dynamic"
    if device.type != "cuda" or stage.attention != "paged" or config.enforce_eager:
        return None
    if is_dynamic or tp_backend == "gloo":
        return None
    return DecodeGraphs(
        stage, cache, max_batch_size=config.max_batch_size, dtype=dtype, device=device
    )


class DecodeGraphs:
    """Runs plans in which every sequence brings one token and samples the next.

    A graph is captured when its batch size is first met, by all ranks of an axis at once. The
    stage's attention must take `DeviceTables`.
    """

    def __init__(
        self,
        stage: DecoderStage,
        cache: KVCache,
        *,
        max_batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        capture: Capture = cuda_graph,
    ) -> None:
        self._stage = stage
        self._cache = cache
        self._sizes = bucket_sizes(max_batch_size)
        self._dtype = dtype
        self._device = device
        self._capture = capture
        self._graphs: dict[int, _Graph] = {}

    def takes(self, plan: BatchPlan) -> bool:
        return 0 < len(plan.sequences) <= self._sizes[-1] and all(
            planned.sample and len(planned.token_ids) == 1 and not planned.targets
            for planned in plan.sequences
        )

    @torch.inference_mode()
    def run(self, plan: BatchPlan, *, receive: Callable[[Tensor], object]) -> Tensor | None:
        """Hidden states (S, dim) of the stage; on the last one logits (S, vocab_size) fp32 on tp
        rank 0 and None elsewhere. Valid until the next call.

        `receive` fills the hidden states (S, dim) of the stage before, where there is one.
        """
        n_sequences = len(plan.sequences)
        size = next(size for size in self._sizes if size >= n_sequences)
        numbers = self._numbers(plan, size)
        graph = self._graphs.get(size)
        if graph is None:
            inputs = numbers.to(self._device)
            hidden = self._hidden(size)
            self._fill(hidden, n_sequences, receive)
            graph = self._graphs[size] = self._captured(inputs, hidden, size)
        else:
            graph.inputs.copy_(numbers, non_blocking=True)
            self._fill(graph.hidden, n_sequences, receive)
        graph.replay()
        return None if graph.out is None else graph.out[:n_sequences]

    def _hidden(self, size: int) -> Tensor | None:
        if self._stage.stage.is_first:
            return None
        return torch.zeros(size, self._stage.config.dim, dtype=self._dtype, device=self._device)

    def _fill(
        self, hidden: Tensor | None, n_sequences: int, receive: Callable[[Tensor], object]
    ) -> None:
        if hidden is None:
            return
        receive(hidden[:n_sequences])
        hidden[n_sequences:] = hidden[n_sequences - 1]  # as the padding of the numbers

    def _captured(self, inputs: Tensor, hidden: Tensor | None, size: int) -> _Graph:
        batch = self._batch(inputs, size)

        def step() -> Tensor | None:
            x = batch.token_ids if hidden is None else hidden
            out = self._stage(x, batch, self._cache)
            return self._stage.logits(out, batch) if self._stage.stage.is_last else out

        replay, out = self._capture(step)
        return _Graph(inputs, hidden, replay, out)

    def _numbers(self, plan: BatchPlan, size: int) -> Tensor:
        """((4 + ring_blocks) · size,) int64 in memory that a copy need not wait for: token ids,
        positions, slots, context lengths, block tables.

        Padding repeats the last sequence, which then is computed and written twice, alike.
        """
        block_size, ring_blocks = self._cache.block_size, self._cache.ring_blocks
        sequences = [*plan.sequences, *plan.sequences[-1:] * (size - len(plan.sequences))]
        starts = [planned.start for planned in sequences]
        tables = [planned.block_table for planned in sequences]
        slots = [
            table[start // block_size % ring_blocks] * block_size + start % block_size
            for start, table in zip(starts, tables, strict=True)
        ]
        numbers = [
            *(planned.token_ids[0] for planned in sequences),
            *starts,
            *slots,
            *(start + 1 for start in starts),
        ]
        for table in tables:
            numbers += table
            numbers += table[:1] * (ring_blocks - len(table))
        pinned = self._device.type == "cuda"
        return torch.tensor(numbers, dtype=torch.int64, pin_memory=pinned)

    def _batch(self, inputs: Tensor, size: int) -> Batch:
        """The views of `inputs` that the captured step reads."""
        token_ids, positions, slots, lengths = inputs[: 4 * size].view(4, size)
        tables = inputs[4 * size :].view(size, self._cache.ring_blocks)
        nobody: Sequence[int] = ()
        nothing = torch.tensor(nobody, dtype=torch.int64, device=self._device)
        return Batch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            logit_rows=torch.arange(size, device=self._device),
            target_rows=nothing,
            targets=nothing,
            block_tables=((),) * size,
            num_new_tokens=(1,) * size,
            context_lens=(1,) * size,
            prompt_lens=(1,) * size,
            cu_seqlens=tuple(range(size + 1)),
            block_size=self._cache.block_size,
            ring_blocks=self._cache.ring_blocks,
            tables=DeviceTables(tables, lengths),
        )
