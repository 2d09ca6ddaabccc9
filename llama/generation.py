"""Meta's `Llama`: the same calls, results and words, over the engine. It knows no layers.

Every rank makes the same calls and gets the same results, as in Meta's package. What differs on
purpose: logprobs are those of the tokens they stand beside; a finished row stops computing; each
row draws from its own generator, derived from the build seed and the number of rows before it; and
no global state of torch (seed, default dtype, default device) is touched.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from operator import index
from typing import TypedDict

import torch
from torch import Tensor

from llama.engine.exchange import FinishedSequence
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.llm import LLM
from llama.model import ModelArgs, Transformer
from llama.tokenizer import ChatFormat, Dialog, Message, Role, Tokenizer, encode_dialog
from llama.tokenizer.chat import B_INST, B_SYS, E_INST, E_SYS, SPECIAL_TAGS, has_special_tags

__all__ = [
    "B_INST",
    "B_SYS",
    "E_INST",
    "E_SYS",
    "SPECIAL_TAGS",
    "UNSAFE_ERROR",
    "ChatPrediction",
    "CompletionPrediction",
    "Dialog",
    "Llama",
    "Message",
    "Role",
    "sample_top_p",
]

UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."


class _Details(TypedDict, total=False):
    """Only there when logprobs were asked for. Each token is decoded alone."""

    tokens: list[str]
    logprobs: list[float]


class CompletionPrediction(_Details, total=False):
    generation: str


class ChatPrediction(_Details, total=False):
    generation: Message


@dataclass(frozen=True)
class _Settings:
    """What one call asks for, apart from its prompts."""

    max_gen_len: int
    temperature: float
    top_p: float
    logprobs: bool
    echo: bool = False

    def sampling_params(self, stop_tokens: Collection[int]) -> SamplingParams:
        """For one row. The engine generates at least one token, which `row` may cut off."""
        if isinstance(self.max_gen_len, bool) or not isinstance(self.max_gen_len, int):
            raise UsageError(f"max_gen_len must be an integer, got {self.max_gen_len!r}")
        if self.max_gen_len < 0:
            raise UsageError(f"max_gen_len must be at least 0, got {self.max_gen_len}")
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=max(1, self.max_gen_len),
            stop_token_ids=tuple(sorted(stop_tokens)),
            logprobs=0 if self.logprobs else None,
            prompt_logprobs=bool(self.logprobs and self.echo),
        )

    def row(
        self, result: FinishedSequence, stop_tokens: Collection[int]
    ) -> tuple[list[int], list[float]]:
        """Ids and logprobs of one row as Meta returns them; no logprobs when not asked for."""
        tokens = list(result.token_ids[: self.max_gen_len])
        logprobs = [item.logprob for item in (result.logprobs or ())[: self.max_gen_len]]
        if self.echo:
            tokens = [*result.prompt_token_ids, *tokens]
            logprobs = [value or 0.0 for value in result.prompt_logprobs or ()] + logprobs
        stops = (place for place, token in enumerate(tokens) if token in stop_tokens)
        end = next(stops, len(tokens))
        return tokens[:end], logprobs[:end]


class Llama:
    """A model and its tokenizer. `formatter` is Llama 3's ChatFormat, None for other tokenizers."""

    @staticmethod
    def build(
        ckpt_dir: str,
        tokenizer_path: str,
        max_seq_len: int,
        max_batch_size: int,
        model_parallel_size: int | None = None,
        seed: int = 1,
        *,
        pipeline_parallel_size: int | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        backend: str | None = None,
        format: str | None = None,
        verify: bool = False,
    ) -> Llama:
        """Load a checkpoint over the ranks of the job. Collective; a plain process is one rank.

        `model_parallel_size` ranks share every layer (default: all that the pipeline leaves), and
        need not be as many as the checkpoint has files. `max_seq_len` counts prompt and answer, in
        tokens. Lines that ranks with LOCAL_RANK above 0 write to stdout from here on are dropped.

        `format` and `verify` are those of `llama.llm.LLM`, and so are the errors: CheckpointError,
        UsageError, RankMismatchError, HardwareError, OutOfMemoryError, PeerLostError.
        """
        _silence_other_ranks()
        began = time.perf_counter()
        llm = LLM(
            ckpt_dir,
            tokenizer_path=tokenizer_path,
            format=format,
            verify=verify,
            tp=model_parallel_size,
            pp=pipeline_parallel_size,
            dtype=dtype,
            device=device,
            backend=backend,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size,
            seed=seed,
        )
        if llm.context.rank == 0:
            # Not a log line: users' scripts show it on stdout, where Meta's package prints it.
            sys.stdout.write(f"Loaded in {time.perf_counter() - began:.2f} seconds\n")
        return Llama(Transformer.from_engine(llm.engine), llm.tokenizer)

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.formatter = ChatFormat(tokenizer) if tokenizer.chat_format == "llama3" else None

    def generate(
        self,
        prompt_tokens: list[list[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids that continue each prompt, and their natural-log probabilities if asked.

        A row has at most `max_gen_len` new ids, and prompt and answer together max_seq_len. It ends
        before its first stop token. With `echo` the prompt comes first, the logprob of its first
        token being 0.0; a stop token inside the prompt then ends the row there, as in Meta's
        package. `temperature` 0 is greedy. Logprobs are those before temperature and top_p.

        Raises UsageError for arguments out of range, RankMismatchError when ranks disagree on them.
        """
        settings = _Settings(max_gen_len, temperature, top_p, logprobs, echo)
        self._agree("generate", prompt_tokens, settings)
        rows = self._rows(prompt_tokens, settings)
        return [row for row, _ in rows], [values for _, values in rows] if logprobs else None

    def text_completion(
        self,
        prompts: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Text that continues each prompt. `max_gen_len` None stands for max_seq_len - 1.

        Otherwise as `generate`, over bos and the encoded prompt.
        """
        settings = _Settings(self._or_longest(max_gen_len), temperature, top_p, logprobs, echo)
        self._agree("text_completion", prompts, settings)
        _check_is_list("prompts", prompts, of="texts")
        bos = self.tokenizer.adds_bos
        encoded = [self.tokenizer.encode(prompt, bos, False) for prompt in prompts]
        return [
            CompletionPrediction(
                generation=self.tokenizer.decode(row), **self._details(row, values, logprobs)
            )
            for row, values in self._rows(encoded, settings)
        ]

    def chat_completion(
        self,
        dialogs: list[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """The assistant's next message in each dialog. `max_gen_len` is as in `text_completion`.

        The prompt has the layout that goes with the tokenizer. In Llama 2's, a dialog that contains
        one of SPECIAL_TAGS is answered by UNSAFE_ERROR; its tokens and logprobs are what the model
        wrote. Otherwise as `generate`; UsageError also when the layout cannot express the roles.
        """
        settings = _Settings(self._or_longest(max_gen_len), temperature, top_p, logprobs)
        self._agree("chat_completion", dialogs, settings)
        _check_is_list("dialogs", dialogs, of="dialogs")
        encoded = [encode_dialog(self.tokenizer, dialog) for dialog in dialogs]
        predictions = []
        for dialog, (row, values) in zip(dialogs, self._rows(encoded, settings), strict=True):
            is_unsafe = self.formatter is None and has_special_tags(dialog)
            content = UNSAFE_ERROR if is_unsafe else self.tokenizer.decode(row)
            answer = Message(role="assistant", content=content)
            predictions.append(
                ChatPrediction(generation=answer, **self._details(row, values, logprobs))
            )
        return predictions

    def _or_longest(self, max_gen_len: int | None) -> int:
        return self.model.params.max_seq_len - 1 if max_gen_len is None else max_gen_len

    def _agree(self, call: str, prompts: object, settings: _Settings) -> None:
        """Before anything is checked: a rank that raised alone would leave the others waiting."""
        engine = self.model.engine
        engine.check_ready()
        engine.context.agree({"call": call, "prompts": prompts, **asdict(settings)})

    def _rows(
        self, prompts: Sequence[Sequence[int]], settings: _Settings
    ) -> list[tuple[list[int], list[float]]]:
        stop_tokens = self.tokenizer.stop_tokens
        params = settings.sampling_params(stop_tokens)
        rows = _checked_prompts(prompts, self.model.params)
        results = self.model.engine.generate(rows, [params] * len(rows))
        return [settings.row(result, stop_tokens) for result in results]

    def _details(self, row: list[int], logprobs: list[float], asked: bool) -> _Details:
        if not asked:
            return {}
        return {"tokens": [self.tokenizer.decode(token) for token in row], "logprobs": logprobs}


def sample_top_p(probs: Tensor, p: float) -> Tensor:
    """Ids (..., 1) drawn with torch's global generator from probabilities (..., vocab).

    A token can be drawn while those more probable than it sum to at most `p` (nucleus sampling,
    Holtzman et al. 2019), so the best one always can. Meta's function; the engine has its own.
    """
    sorted_probs, ids = torch.sort(probs, dim=-1, descending=True)
    before = torch.cumsum(sorted_probs, dim=-1) - sorted_probs
    place = torch.multinomial(sorted_probs.masked_fill(before > p, 0.0), num_samples=1)
    return torch.gather(ids, -1, place)


def _check_is_list(name: str, given: object, *, of: str) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence):
        kind = "one text" if isinstance(given, str) else type(given).__name__
        raise UsageError(f"{name} must be a list of {of}, got {kind}: {given!r:.80}")


def _checked_prompts(prompts: Sequence[Sequence[int]], params: ModelArgs) -> list[list[int]]:
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


def _silence_other_ranks() -> None:
    """As Meta's package: one rank of each host talks on stdout. stderr stays, for errors."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or getattr(sys.stdout, "name", "") == os.devnull:
        return
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open for as long as the process
