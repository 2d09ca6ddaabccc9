"""What one of Meta's calls asks for, and the rows it makes of what the engine generated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import index

from llama.engine.exchange import FinishedSequence
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.model import ModelArgs


@dataclass(frozen=True)
class Settings:
    """What one call asks for, apart from its prompts."""

    max_gen_len: int
    temperature: float
    top_p: float
    logprobs: bool
    echo: bool = False

    def sampling_params(self, stop_tokens: Collection[int]) -> SamplingParams:
        """For one row."""
        if isinstance(self.max_gen_len, bool) or not isinstance(self.max_gen_len, int):
            raise UsageError(f"max_gen_len must be an integer, got {self.max_gen_len!r}")
        if self.max_gen_len < 0:
            raise UsageError(f"max_gen_len must be at least 0, got {self.max_gen_len}")
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_gen_len,
            stop_token_ids=tuple(sorted(stop_tokens)),
            ignore_eos=True,  # stop_tokens are all there are
            logprobs=0 if self.logprobs else None,
            prompt_logprobs=bool(self.logprobs and self.echo),
        )

    def row(
        self, result: FinishedSequence, stop_tokens: Collection[int]
    ) -> tuple[list[int], list[float]]:
        """Ids and logprobs of one row as Meta returns them; no logprobs when not asked for."""
        tokens = list(result.token_ids)
        logprobs = [item.logprob for item in result.logprobs or ()]
        if self.echo:
            tokens = [*result.prompt_token_ids, *tokens]
            logprobs = [value or 0.0 for value in result.prompt_logprobs or ()] + logprobs
        # GPT-2's bos is its end token as well, which at the start of a prompt ends nothing
        start = len(result.prompt_token_ids) if self.echo and tokens[0] in stop_tokens else 0
        stops = (at for at, token in enumerate(tokens) if at >= start and token in stop_tokens)
        end = next(stops, len(tokens))
        return tokens[:end], logprobs[:end]


def check_is_list(name: str, given: object, *, of: str) -> None:
    """Raises UsageError for what is no list; a single text, which is a sequence, is none."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        kind = "one text" if isinstance(given, str) else type(given).__name__
        raise UsageError(f"{name} must be a list of {of}, got {kind}: {given!r:.80}")


def checked_pairs(prefixes: Sequence[str], suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """Each prefix with its suffix. Raises UsageError unless there are as many of both."""
    check_is_list("prefixes", prefixes, of="texts")
    check_is_list("suffixes", suffixes, of="texts")
    for text in (*prefixes, *suffixes):
        if not isinstance(text, str):
            raise UsageError(f"prefixes and suffixes must be texts, got {text!r:.80}")
    if len(prefixes) != len(suffixes):
        raise UsageError(
            f"{len(prefixes)} prefixes for {len(suffixes)} suffixes; give as many of both"
        )
    return list(zip(prefixes, suffixes, strict=True))


def checked_prompts(prompts: Sequence[Sequence[int]], params: ModelArgs) -> list[list[int]]:
    """The prompts with their ids as int. Raises UsageError for other ids and beyond `params`."""
    try:
        rows = [[index(token) for token in prompt] for prompt in prompts]
    except TypeError as error:
        raise UsageError(f"prompts must be lists of integer token ids: {error}") from error
    if len(rows) > params.max_batch_size:
        raise UsageError(
            f"batch of {len(rows)} prompts exceeds max_batch_size {params.max_batch_size}; "
            "send fewer at once or build with a larger max_batch_size"
        )
    for number, row in enumerate(rows):
        if not row:
            raise UsageError(f"prompt {number} has no tokens; give at least bos")
        if len(row) > params.max_seq_len:
            raise UsageError(
                f"prompt {number} has {len(row)} tokens, more than max_seq_len "
                f"{params.max_seq_len}; shorten it or build with a larger max_seq_len"
            )
    return rows
