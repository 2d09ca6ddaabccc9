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
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

import torch

from llama.engine.exchange import all_complete
from llama.generation.predictions import (
    UNSAFE_ERROR,
    ChatPrediction,
    CompletionPrediction,
    Details,
    InfillingPrediction,
)
from llama.generation.settings import Settings, check_is_list, checked_pairs, checked_prompts
from llama.llm import LLM
from llama.model import Transformer
from llama.parallel.meeting.launched import Launched
from llama.tokenizer import ChatFormat, Dialog, Message, Tokenizer, encode_dialog
from llama.tokenizer.chat import has_special_tags
from llama.tokenizer.infilling import InfillingFormat


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
        transport: str | None = None,
        format: str | None = None,
        verify: bool = False,
        chat_format: str | None = None,
        quantize: str | None = None,
    ) -> Llama:
        """Load a checkpoint over the ranks of the job. Collective; a plain process is one rank.

        `model_parallel_size` ranks share every layer (default: all that the pipeline leaves), and
        need not be as many as the checkpoint has files. `max_seq_len` counts prompt and answer, in
        tokens. From here on what a rank writes to stdout is dropped, except for one on each host.

        `format`, `verify`, `chat_format` and `quantize` are those of `llama.llm.LLM`, and so are
        the errors: CheckpointError, UsageError, RankMismatchError, HardwareError, OutOfMemoryError,
        PeerLostError.
        """
        _silence_other_ranks()
        began = time.perf_counter()
        llm = LLM(
            ckpt_dir,
            tokenizer_path=tokenizer_path,
            format=format,
            verify=verify,
            chat_format=chat_format,
            tp=model_parallel_size,
            pp=pipeline_parallel_size,
            dtype=dtype,
            device=device,
            backend=backend,
            transport=transport,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size,
            seed=seed,
            quantize=quantize,
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
        *,
        stop_token: int | None = None,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids that continue each prompt, and their natural-log probabilities if asked.

        A row has at most `max_gen_len` new ids, and prompt and answer together max_seq_len. It ends
        before its first stop token. With `echo` the prompt comes first, the logprob of its first
        token being 0.0; a stop token inside the prompt then ends the row there, as in Meta's
        package. `stop_token` takes the place of the tokenizer's own ones, as in Code Llama's.
        `temperature` 0 is greedy. Logprobs are those before temperature and top_p.

        Raises UsageError for arguments out of range, RankMismatchError when ranks disagree on them.
        """
        settings = Settings(max_gen_len, temperature, top_p, logprobs, echo)
        self._agree("generate", [prompt_tokens, stop_token], settings)
        stop_tokens = None if stop_token is None else [stop_token]
        rows = self._rows(prompt_tokens, settings, stop_tokens=stop_tokens)
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

        Otherwise as `generate`, over the encoded prompt, with bos before it as the model expects.
        """
        settings = Settings(self._or_longest(max_gen_len), temperature, top_p, logprobs, echo)
        self._agree("text_completion", prompts, settings)
        check_is_list("prompts", prompts, of="texts")
        encoded = [self.tokenizer.encode_prompt(prompt) for prompt in prompts]
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
        *,
        chat_format: str | None = None,
    ) -> list[ChatPrediction]:
        """The assistant's next message in each dialog. `max_gen_len` is as in `text_completion`.

        The prompt has the layout `chat_format`, by default the model's own. Where its tags are
        text (Llama 2, Code Llama, Mistral v1), a dialog that contains one is answered by
        UNSAFE_ERROR; its tokens and logprobs are what the model wrote. Otherwise as `generate`;
        UsageError also when the layout cannot express the roles.
        """
        settings = Settings(self._or_longest(max_gen_len), temperature, top_p, logprobs)
        chat_format = chat_format or self.tokenizer.chat_format
        self._agree("chat_completion", [dialogs, chat_format], settings)
        check_is_list("dialogs", dialogs, of="dialogs")
        encoded = [
            encode_dialog(self.tokenizer, dialog, chat_format=chat_format) for dialog in dialogs
        ]
        predictions = []
        for dialog, (row, values) in zip(dialogs, self._rows(encoded, settings), strict=True):
            is_unsafe = has_special_tags(dialog, chat_format=chat_format)
            content = UNSAFE_ERROR if is_unsafe else self.tokenizer.decode(row)
            answer = Message(role="assistant", content=content)
            if chat_format == "codellama70b":
                answer["destination"] = "user"
            predictions.append(
                ChatPrediction(generation=answer, **self._details(row, values, logprobs))
            )
        return predictions

    def text_infilling(
        self,
        prefixes: list[str],
        suffixes: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        suffix_first: bool = False,
    ) -> list[InfillingPrediction]:
        """Text between each prefix and its suffix. `max_gen_len` is as in `text_completion`.

        `tokens` are pieces as the tokenizer's file has them. Otherwise as `generate`; UsageError
        also for a tokenizer without Code Llama's infilling tokens, see `infilling_prompt_tokens`.
        """
        settings = Settings(self._or_longest(max_gen_len), temperature, top_p, logprobs)
        self._agree("text_infilling", [prefixes, suffixes, suffix_first], settings)
        infilling = InfillingFormat.of(self.tokenizer)
        pairs = checked_pairs(prefixes, suffixes)
        encoded = [infilling.encode_prompt(*pair, suffix_first=suffix_first) for pair in pairs]
        rows = self._rows(encoded, settings, stop_tokens=infilling.stop_tokens)
        predictions = []
        for (prefix, suffix), (row, values) in zip(pairs, rows, strict=True):
            generation = infilling.tokenizer.decode_infilling(row)
            piece_of = infilling.tokenizer.token_piece
            details = self._details(row, values, logprobs, text_of=piece_of)
            predictions.append(
                InfillingPrediction(
                    generation=generation, full_text=prefix + generation + suffix, **details
                )
            )
        return predictions

    def _or_longest(self, max_gen_len: int | None) -> int:
        return self.model.params.max_seq_len - 1 if max_gen_len is None else max_gen_len

    def _agree(self, call: str, prompts: object, settings: Settings) -> None:
        """Before anything is checked: a rank that raised alone would leave the others waiting."""
        engine = self.model.engine
        engine.check_ready()
        engine.context.agree({"call": call, "prompts": prompts, **asdict(settings)})

    def _rows(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        stop_tokens: Collection[int] | None = None,
    ) -> list[tuple[list[int], list[float]]]:
        stop_tokens = self.tokenizer.stop_tokens if stop_tokens is None else stop_tokens
        params = settings.sampling_params(stop_tokens)
        rows = checked_prompts(prompts, self.model.params)
        results = all_complete(self.model.engine.generate(rows, [params] * len(rows)))
        return [settings.row(result, stop_tokens) for result in results]

    def _details(
        self,
        row: list[int],
        logprobs: list[float],
        asked: bool,
        *,
        text_of: Callable[[int], str] | None = None,
    ) -> Details:
        if not asked:
            return {}
        text_of = text_of or self.tokenizer.decode
        return {"tokens": [text_of(token) for token in row], "logprobs": logprobs}


def _silence_other_ranks() -> None:
    """As Meta's package: one rank of each host talks on stdout. stderr stays, for errors."""
    launched = Launched.from_environment(os.environ)
    is_first = launched is None or launched.local_rank == 0
    if is_first or getattr(sys.stdout, "name", "") == os.devnull:
        return
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open for as long as the process
