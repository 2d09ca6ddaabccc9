"""What one step computes and what comes of it, as host integers that travel between ranks.

A BatchPlan goes from the scheduler to every rank, a StepResult comes back from the rank that
samples. Both are self-contained: who receives one needs no memory of earlier plans. A message is a
list of int64: magic, number of integers that follow, their CRC-32, then the fields. Floats travel
as their bit patterns and block tables as runs (first block, how many), so a contiguous table costs
three integers.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llama.engine.sequence import Sequence as Request
from llama.engine.sequence import TokenLogprob, mix64
from llama.errors import RankMismatchError

_PLAN_MAGIC = int.from_bytes(b"LlPlan01", "big")
_RESULT_MAGIC = int.from_bytes(b"LlStep01", "big")
_MAX_BLOCKS = 2**24
"""More blocks than any sequence has: garbage must not make a receiver fill its memory."""


@dataclass(frozen=True)
class DrawParams:
    """How to draw one token. `step` counts the output tokens so far; with `seed` it fixes the draw.

    `n_logprobs` -1 asks for no logprobs, k >= 0 for the token's own and the k best.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    step: int
    n_logprobs: int = -1

    @classmethod
    def of(cls, request: Request) -> DrawParams:
        """The draw of the request's next token."""
        params = request.params
        return cls(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=request.seed,
            step=request.num_output_tokens,
            n_logprobs=-1 if params.logprobs is None else params.logprobs,
        )

    @property
    def uniform(self) -> float:
        """A number in [0, 1) with 53 random bits, the same on every machine."""
        return ((mix64(self.seed, self.step) & (2**64 - 1)) >> 11) * 2.0**-53


@dataclass(frozen=True)
class PlannedSequence:
    """New tokens of one sequence: `token_ids` at positions `start`, `start` + 1, ...

    `num_prompt_tokens` is the length of its whole prompt, of which these may be a part or not.
    `block_table`, a ring as in `llama.ops.batch`, covers every position up to the last new one.
    `sample` asks for the token that follows; `draw` is there exactly when it does. Logprobs are
    wanted for `targets`: token i of them follows new token i.
    """

    seq_id: int
    token_ids: tuple[int, ...]
    start: int
    num_prompt_tokens: int
    block_table: tuple[int, ...]
    sample: bool
    draw: DrawParams | None
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchPlan:
    """One step: new tokens of distinct sequences, or the order to stop (`BatchPlan.STOP`)."""

    sequences: tuple[PlannedSequence, ...]
    stop: bool = False

    STOP: ClassVar[BatchPlan]

    @property
    def num_tokens(self) -> int:
        return sum(len(planned.token_ids) for planned in self.sequences)

    def encode(self) -> list[int]:
        fields = [int(self.stop), len(self.sequences)]
        for planned in self.sequences:
            fields += _encode_planned(planned)
        return _seal(_PLAN_MAGIC, fields)

    @classmethod
    def decode(cls, message: Sequence[int]) -> BatchPlan:
        """Raises RankMismatchError when `message` is not exactly what `encode` makes."""
        fields = _Fields(message, magic=_PLAN_MAGIC, what="batch plan")
        stop = fields.flag()
        sequences = tuple(_decode_planned(fields) for _ in range(fields.size()))
        fields.end()
        return cls(sequences, stop)


BatchPlan.STOP = BatchPlan((), stop=True)


@dataclass(frozen=True)
class SequenceResult:
    """`token_id` is -1 when nothing was sampled; `target_logprobs` has one number per target.

    `overflow_at` is the first position whose logits were not finite, and then there is nothing
    else; -1 when all were.
    """

    token_id: int = -1
    logprob: TokenLogprob | None = None
    target_logprobs: tuple[float, ...] = ()
    overflow_at: int = -1


@dataclass(frozen=True)
class StepResult:
    """One result per planned sequence, in the order of the plan."""

    sequences: tuple[SequenceResult, ...]

    def encode(self) -> list[int]:
        fields = [len(self.sequences)]
        for result in self.sequences:
            fields += [result.token_id, result.overflow_at]
            fields += [len(result.target_logprobs), *_bits(result.target_logprobs)]
            fields.append(int(result.logprob is not None))
            if result.logprob is not None:
                logprob = result.logprob
                fields += [logprob.token_id, *_bits([logprob.logprob]), len(logprob.top)]
                fields += [token_id for token_id, _ in logprob.top]
                fields += _bits(value for _, value in logprob.top)
        return _seal(_RESULT_MAGIC, fields)

    @classmethod
    def decode(cls, message: Sequence[int]) -> StepResult:
        """Raises RankMismatchError when `message` is not exactly what `encode` makes."""
        fields = _Fields(message, magic=_RESULT_MAGIC, what="step result")
        sequences = tuple(_decode_result(fields) for _ in range(fields.size()))
        fields.end()
        return cls(sequences)


def _encode_planned(planned: PlannedSequence) -> list[int]:
    runs = list(_runs(planned.block_table))
    flags = int(planned.sample) + 2 * (planned.draw is not None)
    fields = [planned.seq_id, flags, planned.start, planned.num_prompt_tokens]
    fields += [len(planned.token_ids), *planned.token_ids]
    fields += [len(runs), *(number for run in runs for number in run)]
    if planned.draw is not None:
        draw = planned.draw
        fields += _bits([draw.temperature, draw.top_p])
        fields += [draw.top_k, draw.seed, draw.step, draw.n_logprobs]
    return [*fields, len(planned.targets), *planned.targets]


def _decode_planned(fields: _Fields) -> PlannedSequence:
    seq_id, flags, start, num_prompt_tokens = fields.take(4)
    if not 0 <= flags <= 3:
        raise fields.error(f"flags {flags}")
    token_ids = fields.take(fields.size())
    block_table: list[int] = []
    for _ in range(fields.size()):
        first, count = fields.take(2)
        if not 0 <= count <= _MAX_BLOCKS - len(block_table):
            raise fields.error(f"a run of {count} blocks")
        block_table += range(first, first + count)
    draw = None
    if flags & 2:
        temperature, top_p = fields.floats(2)
        draw = DrawParams(temperature, top_p, *fields.take(4))
    targets = fields.take(fields.size())
    return PlannedSequence(
        seq_id=seq_id,
        token_ids=token_ids,
        start=start,
        num_prompt_tokens=num_prompt_tokens,
        block_table=tuple(block_table),
        sample=bool(flags & 1),
        draw=draw,
        targets=targets,
    )


def _decode_result(fields: _Fields) -> SequenceResult:
    token_id, overflow_at = fields.take(2)
    target_logprobs = fields.floats(fields.size())
    logprob = None
    if fields.flag():
        (own,) = fields.take(1)
        (value,) = fields.floats(1)
        size = fields.size()
        top = tuple(zip(fields.take(size), fields.floats(size), strict=True))
        logprob = TokenLogprob(own, value, top)
    return SequenceResult(token_id, logprob, target_logprobs, overflow_at)


def _runs(blocks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """`blocks` as (first, count) of its maximal ascending runs."""
    if blocks and blocks == tuple(range(blocks[0], blocks[0] + len(blocks))):
        yield blocks[0], len(blocks)  # the usual case, at C speed
        return
    start = 0
    for stop in range(1, len(blocks) + 1):
        if stop == len(blocks) or blocks[stop] != blocks[stop - 1] + 1:
            yield blocks[start], stop - start
            start = stop


def _bits(values: Iterable[float]) -> Sequence[int]:
    """Each float64 as the int64 with the same bits."""
    packed = struct.pack(f"{len(values := tuple(values))}d", *values)
    return struct.unpack(f"{len(values)}q", packed)


def _checksum(fields: Sequence[int]) -> int:
    return zlib.crc32(array("q", fields).tobytes())


def _seal(magic: int, fields: list[int]) -> list[int]:
    return [magic, len(fields), _checksum(fields), *fields]


class _Fields:
    """Reads a sealed message from front to back; anything unexpected is a RankMismatchError."""

    def __init__(self, message: Sequence[int], *, magic: int, what: str) -> None:
        self._what = what
        self._at = 0
        header, self._fields = tuple(message[:3]), tuple(message[3:])
        if header[:2] != (magic, len(self._fields)):
            raise self.error(f"header {header} and {len(self._fields)} more integers")
        if header[2] != _checksum(self._fields):
            raise self.error(f"{len(self._fields)} integers that do not match their checksum")

    def error(self, found: str) -> RankMismatchError:
        return RankMismatchError(
            f"a {self._what} was expected from another rank, got {found}; "
            f"start every rank from the same version of this package"
        )

    def take(self, count: int) -> tuple[int, ...]:
        taken = self._fields[self._at : self._at + count]
        if len(taken) != count:
            raise self.error(f"{len(taken)} integers where {count} should follow")
        self._at += count
        return taken

    def floats(self, count: int) -> tuple[float, ...]:
        return struct.unpack(f"{count}d", struct.pack(f"{count}q", *self.take(count)))

    def size(self) -> int:
        (size,) = self.take(1)
        if not 0 <= size <= len(self._fields):
            raise self.error(f"a length of {size}")
        return size

    def flag(self) -> bool:
        (flag,) = self.take(1)
        if flag not in (0, 1):
            raise self.error(f"flag {flag}")
        return bool(flag)

    def end(self) -> None:
        if self._at != len(self._fields):
            raise self.error(f"{len(self._fields) - self._at} integers too many")
