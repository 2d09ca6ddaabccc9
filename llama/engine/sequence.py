"""One request: what was asked, how far it is (Sequence), and what its caller sees of it.

A Sequence knows when it is finished. Blocks, batches and the order of requests are the scheduler's;
text and tokenizers are not known here, so stop strings are only carried along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from llama.errors import UsageError

FinishReason = Literal["stop", "length", "abort", "error"]
Status = Literal["waiting", "running", "finished"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_MASK = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt. Raises UsageError for a value out of range.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token. `seed` None lets the engine
    choose one. `max_tokens` None generates until max_seq_len, 0 nothing. `stop` strings end the
    output and are not part of its text (its ids keep their tokens); `stop_token_ids` are in
    neither. `ignore_eos` turns off the tokenizer's own end tokens only.
    `logprobs` k gives each output token's natural-log probability and those of the k best tokens;
    None gives none. `prompt_logprobs` does the same for the prompt's tokens, without alternatives.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        stop_ids = _items("stop_token_ids", self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", stop_ids)
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if self.temperature < 0:
            raise UsageError(f"temperature must be at least 0 (greedy), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1 (off), got {self.top_p}")
        _check_int("top_k", self.top_k, at_least=0, note="; 0 turns it off")
        if self.seed is not None:
            _check_int("seed", self.seed, at_least=INT64_MIN)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, at_least=0)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, at_least=0, at_most=MAX_LOGPROBS)
        for name in ("ignore_eos", "prompt_logprobs"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not all(isinstance(text, str) and text for text in stop):
            raise UsageError(f"stop must be non-empty strings, got {stop!r}")
        if len(stop) > MAX_STOP_STRINGS:
            raise UsageError(f"stop has {len(stop)} strings; use at most {MAX_STOP_STRINGS}")
        for token_id in stop_ids:
            _check_int("stop_token_ids", token_id, at_least=0)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural-log probability, before temperature and filters, and the best tokens.

    `top` is (token_id, logprob) of the most probable tokens, best first, ties by lower id.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class RequestOutput:
    """What a caller sees of a request, complete when `finished`. `prompt_logprobs[0]` is None."""

    request_id: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[float | None, ...] | None
    finish_reason: str | None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class Sequence:
    """The changing record of one request.

    `token_ids` is prompt and output together; the token that stopped a sequence is in
    `stop_token_id` and not in the output, and neither is its logprob. `num_computed` counts the
    leading tokens whose K and V are in the cache or, when `plans_in_flight`, on their way there.
    `prompt_logprobs` starts with None for the first token. `eos_token_ids` are the tokenizer's own
    end tokens. `error` says what was wrong when `finish_reason` is "error".
    """

    def __init__(
        self,
        seq_id: int,
        prompt_token_ids: Iterable[int],
        params: SamplingParams,
        *,
        seed: int,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.seq_id = seq_id
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.params = params
        self.seed = seed
        eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self.stop_token_ids = eos | frozenset(params.stop_token_ids)
        self.token_ids = list(self.prompt_token_ids)
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[float | None] = [None] if params.prompt_logprobs else []
        self.status: Status = "waiting"
        self.num_computed = 0
        self.plans_in_flight = 0
        self.block_table: tuple[int, ...] = ()
        self.finish_reason: FinishReason | None = None
        self.stop_token_id: int | None = None
        self.error = ""

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_new_tokens(self) -> int:
        """Known tokens that no plan has computed yet; 0 while the next token is being sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def in_flight(self) -> bool:
        return self.plans_in_flight > 0

    @property
    def is_decode(self) -> bool:
        """Whether one token is all there is to compute; the last of a prompt counts as well."""
        return self.num_new_tokens == 1

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether logprobs of prompt tokens were asked for and some are not there yet."""
        return 0 < len(self.prompt_logprobs) < len(self.prompt_token_ids)

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"

    def max_num_tokens(self, max_seq_len: int) -> int:
        """Prompt and output together can reach this many tokens."""
        if self.params.max_tokens is None:
            return max_seq_len
        return min(max_seq_len, len(self.prompt_token_ids) + self.params.max_tokens)

    def append(self, token_id: int, logprob: TokenLogprob | None, *, max_seq_len: int) -> None:
        """Take the sampled token, and finish on a stop token or at the longest allowed length."""
        if token_id in self.stop_token_ids:
            self.stop_token_id = token_id
            self.finish("stop")
            return
        self.token_ids.append(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.num_tokens >= self.max_num_tokens(max_seq_len):
            self.finish("length")

    def targets(self, start: int, stop: int) -> tuple[int, ...]:
        """Prompt tokens that follow tokens `start`..`stop` - 1, if some still want a logprob."""
        end = min(stop + 1, len(self.prompt_token_ids))
        wanted = self.wants_prompt_logprobs and len(self.prompt_logprobs) < end
        return self.prompt_token_ids[start + 1 : end] if wanted else ()

    def add_prompt_logprobs(self, values: Iterable[float], *, first: int) -> None:
        """Take the logprobs of prompt tokens `first`, `first` + 1, ...; known ones stay.

        Chunks arrive in order, so `first` is never beyond the first unknown one.
        """
        self.prompt_logprobs.extend(islice(values, len(self.prompt_logprobs) - first, None))

    def finish(self, reason: FinishReason) -> None:
        self.status = "finished"
        self.finish_reason = reason

    def overflow(self, position: int) -> None:
        """Finish with an error: the logits after `position` are not finite."""
        self.finish("error")
        self.error = (
            f"request {self.seq_id}: non-finite logits after position {position}; verify the "
            "checkpoint, or use a dtype with more range than the one it overflows"
        )


def mix64(seed: int, number: int) -> int:
    """A signed 64-bit integer that looks random and depends on nothing but the two integers.

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over each in turn. Gives every draw its uniform
    and every request of an engine with one seed a seed of its own.
    """
    mixed = _finalise((_finalise(seed) + number) & _MASK)
    return mixed - 2**64 if mixed > INT64_MAX else mixed


def _finalise(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _items(name: str, value: object) -> tuple[object, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"{name} must be a list or tuple, got {value!r}")
    return tuple(value)


def _finite(name: str, value: object) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        with suppress(OverflowError):  # an int beyond the range of float
            if math.isfinite(number := float(value)):
                return number
    raise UsageError(f"{name} must be a finite number, got {value!r}")


def _check_int(
    name: str, value: object, *, at_least: int, at_most: int = INT64_MAX, note: str = ""
) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise UsageError(
            f"{name} must be an integer from {at_least} to {at_most}{note}, got {value!r}"
        )
