"""Every rank gets every result: finished sequences travel from each replica's leader to the world.

As JSON bytes with a fixed schema: Python writes floats so that they read back bit for bit, and
nothing that arrives is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llama.engine.sequence import Sequence, TokenLogprob
from llama.errors import LlamaError
from llama.parallel.context import ParallelContext
from llama.parallel.liveness.drain import EXIT_CODE
from llama.parallel.liveness.whereabouts import Phase


@dataclass(frozen=True)
class FinishedSequence:
    """What a request came to. `token_ids` are the generated ones, without the stop token.

    `logprobs` has one entry a generated token when asked for; `prompt_logprobs` one a prompt token,
    the first None. `finish_reason` is "stop", "length", "abort" or "error", and `error` says which.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[float | None, ...] | None
    finish_reason: str
    error: str = ""

    @classmethod
    def of(cls, sequence: Sequence) -> FinishedSequence:
        """The final record of a finished `sequence`."""
        asked = sequence.params
        return cls(
            prompt_token_ids=tuple(sequence.prompt_token_ids),
            token_ids=tuple(sequence.output_token_ids),
            logprobs=None if asked.logprobs is None else tuple(sequence.logprobs),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if asked.prompt_logprobs else None,
            finish_reason=sequence.finish_reason or "abort",
            error=sequence.error,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> FinishedSequence:
        """The inverse of `dataclasses.asdict` after a trip through JSON."""
        logprobs, prompt_logprobs = fields["logprobs"], fields["prompt_logprobs"]
        return cls(
            prompt_token_ids=tuple(fields["prompt_token_ids"]),
            token_ids=tuple(fields["token_ids"]),
            logprobs=None if logprobs is None else tuple(_token_logprob(f) for f in logprobs),
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
            finish_reason=fields["finish_reason"],
            error=fields["error"],
        )


def _token_logprob(fields: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((token_id, logprob) for token_id, logprob in fields["top"])
    return TokenLogprob(fields["token_id"], fields["logprob"], top)


def finished(requests: Iterable[Sequence]) -> dict[int, FinishedSequence]:
    """The records of those that were served here, by index."""
    return {
        index: FinishedSequence.of(request)
        for index, request in enumerate(requests)
        if request.finish_reason is not None
    }


def all_sound(results: list[FinishedSequence]) -> list[FinishedSequence]:
    """`results`, or LlamaError for the first of them that failed by itself."""
    for result in results:
        if result.error:
            raise LlamaError(result.error)
    return results


def all_complete(results: list[FinishedSequence]) -> list[FinishedSequence]:
    """`results`, for a face that cannot show that one was aborted; SystemExit when one was.

    Every rank has the same ones, so all of them go or stay.
    """
    if any(result.finish_reason == "abort" for result in results):
        raise SystemExit(EXIT_CODE)
    return results


def share_results(
    mine: Mapping[int, FinishedSequence], n_results: int, *, context: ParallelContext
) -> list[FinishedSequence]:
    """All results in order on every rank; `mine` are those led here, by index. Collective."""
    if context.layout.world_size == 1:
        return [mine[index] for index in range(n_results)]
    everything: dict[int, FinishedSequence] = {}
    for dp_rank in range(context.layout.dp_size):
        leader = context.layout.rank_at(dp_rank, 0, 0)
        payload = b""
        if leader == context.rank:
            payload = json.dumps({index: asdict(result) for index, result in mine.items()}).encode()
        with context.whereabouts.during(Phase.WAIT, "waiting for all results"):
            payload = _broadcast_bytes(payload, leader, context)
        for index, fields in json.loads(payload).items():
            everything[int(index)] = FinishedSequence.from_fields(fields)
    return [everything[index] for index in range(n_results)]


def _broadcast_bytes(payload: bytes, src: int, context: ParallelContext) -> bytes:
    size = context.world.broadcast(torch.tensor([len(payload)]), src=src)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if payload:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    return bytes(context.world.broadcast(data, src=src).numpy())
