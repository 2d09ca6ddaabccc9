"""What a contestant is given to do, and how fast it was, from when its tokens came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

_WARM_PROMPT_TOKENS = 512
_WARM_NEW_TOKENS = 4
Kind = Literal["decode", "prefill", "whole"]


@dataclass(frozen=True)
class Work:
    """`batch` prompts at once. Of "decode" the tokens after everybody's first one are timed, of
    "prefill" the prompts until the first token is there, of "whole" all tokens, read and written.
    """

    name: str
    kind: Kind
    batch: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Token ids, different in every row and place, the same in every process."""
        return [
            [1 + (row * 7919 + at * 104729) % (vocab_size - 1) for at in range(self.prompt_tokens)]
            for row in range(self.batch)
        ]

    @property
    def warm_up(self) -> Work:
        """What is done once before it: the same in short."""
        return replace(
            self,
            prompt_tokens=min(self.prompt_tokens, _WARM_PROMPT_TOKENS),
            new_tokens=min(self.new_tokens, _WARM_NEW_TOKENS),
        )

    @property
    def most_tokens(self) -> int:
        """Of one sequence."""
        return self.prompt_tokens + self.new_tokens

    @property
    def mean_context_tokens(self) -> float:
        """What a decoding step finds in the cache on average, over all sequences."""
        return self.batch * (self.prompt_tokens + self.new_tokens / 2)


@dataclass(frozen=True)
class Event:
    """Seconds since the work began, new tokens so far, and sequences that have any."""

    at_s: float
    n_tokens: int
    n_started: int


@dataclass(frozen=True)
class Trace:
    """One time through a work; `token_ids` are the new ones of its first sequence."""

    events: Sequence[Event]
    token_ids: Sequence[int]

    @property
    def first_token_s(self) -> float:
        return self.events[0].at_s

    def tokens_per_s(self, work: Work) -> float:
        last = self.events[-1]
        if work.kind == "whole":
            return (work.batch * work.prompt_tokens + last.n_tokens) / last.at_s
        begun = next(event for event in self.events if event.n_started == work.batch)
        if work.kind == "prefill":
            return work.batch * work.prompt_tokens / begun.at_s
        return (last.n_tokens - begun.n_tokens) / (last.at_s - begun.at_s)


WORKS: Mapping[str, Work] = MappingProxyType(
    {
        work.name: work
        for work in (
            Work("decode-1", "decode", batch=1, prompt_tokens=64, new_tokens=33),
            Work("decode-8", "decode", batch=8, prompt_tokens=64, new_tokens=25),
            Work("decode-32", "decode", batch=32, prompt_tokens=16, new_tokens=17),
            Work("prefill-512", "prefill", batch=1, prompt_tokens=512, new_tokens=1),
            Work("prefill-2048", "prefill", batch=1, prompt_tokens=2048, new_tokens=1),
            Work("8-requests-decode", "whole", batch=8, prompt_tokens=16, new_tokens=128),
            Work("8-requests-prompt", "whole", batch=8, prompt_tokens=512, new_tokens=16),
        )
    }
)
