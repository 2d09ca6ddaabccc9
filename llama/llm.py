"""The offline face: text in, text out, over the engine. Runs alike on one process or on every rank.

Under several ranks every call is collective: each rank makes it with the same arguments (checked),
and `generate` gives each the same results. `stream` yields on the leader only.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, cast

import torch

from llama.config import ModelConfig, ParallelConfig
from llama.engine.build import build_engine
from llama.engine.decide import decide_layout
from llama.engine.exchange import FinishedSequence, all_complete
from llama.engine.output import final_text
from llama.engine.score import ScoreOutput
from llama.engine.sequence import RequestOutput, SamplingParams
from llama.engine.sequence import Sequence as Request
from llama.engine.source import ModelSource
from llama.errors import LlamaError, UsageError
from llama.parallel.context import ParallelContext

Prompt = str | Sequence[int]
"""Text, encoded here with a leading bos where the tokenizer adds one or the text is empty, or ids
as they are."""

_SCORING = SamplingParams(max_tokens=0, prompt_logprobs=True)


class LLM:
    """A loaded model. Lengths are in tokens; sizes left None are found out.

    `ckpt_dir` is a folder of any format in FORMATS (told from its files unless `format` names it);
    `verify` checks its files against the checksums beside them; `chat_format` names the layout of
    its dialogs (None: picked from the checkpoint). `tp`/`pp` cut the model over ranks
    (default: all ranks tensor-parallel; "auto" chooses from the memory plan, and `layout_reason`
    says why); `dtype` is the compute dtype (default: the checkpoint's on a GPU, float32 on a CPU);
    `transport` moves data between ranks of one host ("shm", "gloo"; default: shared memory for
    ranks that compute on a CPU); `max_seq_len` counts prompt and completion (default: 2048, or as
    far as the model's positions go); further keywords are EngineConfig's.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        *,
        tokenizer_path: str | Path | None = None,
        format: str | None = None,
        verify: bool = False,
        chat_format: str | None = None,
        tp: int | Literal["auto"] | None = None,
        pp: int | Literal["auto"] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        backend: str | None = None,
        transport: str | None = None,
        max_seq_len: int | None = None,
        max_batch_size: int = 32,
        seed: int = 0,
        **engine_options: Any,
    ) -> None:
        source = ModelSource(ckpt_dir, tokenizer_path, format, verify, chat_format)
        sizes = {"max_seq_len": max_seq_len, "max_batch_size": max_batch_size, **engine_options}
        parallel, self.layout_reason = decide_layout(
            source,
            ParallelConfig(
                tp_size=tp, pp_size=pp, device=device, backend=backend, transport=transport
            ),
            engine_options=sizes,
            dtype=dtype,
        )
        self.engine, self.tokenizer, self.load_report = build_engine(
            source,
            engine_options=sizes,
            parallel=parallel,
            dtype=dtype,
            seed=seed,
        )

    @property
    def context(self) -> ParallelContext:
        return self.engine.context

    @property
    def model_config(self) -> ModelConfig:
        return self.engine.model_config

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; one output a prompt, in order, on every rank.

        Raises UsageError for a prompt or setting that cannot be served, RankMismatchError when
        ranks were given different ones; both before anything runs.
        """
        texts, token_ids, params = self._agreed(prompts, sampling_params)
        finished = self.engine.generate(token_ids, params)
        return [
            self._output(index, text, result, param)
            for index, (text, result, param) in enumerate(zip(texts, finished, params, strict=True))
        ]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Yield an output whenever a request has new text or is done; `text` is only what is new.

        Leaders yield; on other ranks the iterator runs the job to its end without yielding, so
        every rank must exhaust it. Leaving the loop early on the leader aborts what is unfinished.
        `prompt_logprobs` come with the last output of a request. One that fails by itself ends with
        the `finish_reason` "error"; the leader raises its LlamaError when all others are done.
        """
        texts, token_ids, params = self._agreed(prompts, sampling_params)
        outputs = self._stream(texts, self.engine.make_requests(token_ids, params))
        # a generator that was never entered would not tell the followers to stop when it is closed
        next(outputs)
        return cast("Generator[RequestOutput, None, None]", outputs)

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[ScoreOutput]:
        """How probable the tokens of every prompt are, each given those before it.

        Nothing is generated. One output a prompt, in order, on every rank. Raises UsageError for a
        prompt of fewer than two tokens or of more than max_seq_len, RankMismatchError when ranks
        were given different ones; both before anything runs.
        """
        _, token_ids, params = self._agreed(prompts, _SCORING)
        for number, ids in enumerate(token_ids):
            self._check_scorable(f"prompt {number}", len(ids))
        return [
            ScoreOutput(result.prompt_token_ids, result.prompt_logprobs or ())
            for result in all_complete(self.engine.generate(token_ids, params))
        ]

    def _check_scorable(self, name: str, n_tokens: int) -> None:
        limit = self.engine.config.max_seq_len
        if n_tokens < 2:
            raise UsageError(
                f"{name} has {n_tokens} tokens, and the first has no probability; "
                f"give at least 2 to score"
            )
        if n_tokens > limit:
            raise UsageError(
                f"{name} has {n_tokens} tokens, max_seq_len is {limit}; raise it, or score parts "
                f"that overlap, as `llama score` does"
            )

    def _stream(
        self, texts: list[str | None], requests: list[Request]
    ) -> Generator[RequestOutput | None, None, None]:
        """None once, before anything runs; then the outputs.

        Raises LlamaError at the end, on the leader, when a request failed by itself.
        """
        failed = []
        outputs = self.engine.outputs
        # closed by hand: an error while stopping must reach the caller, not the garbage collector
        with closing(self.engine.stream(requests)) as running:
            next(running)
            yield None
            for request in running:
                assert request is not None
                if request.error:
                    failed.append(request.error)
                new_text = outputs.new_text(request) if outputs else ""
                if not new_text and request.finish_reason is None:
                    continue
                index = request.seq_id
                result = FinishedSequence.of(request)
                yield RequestOutput(
                    request_id=index,
                    prompt=texts[index],
                    prompt_token_ids=result.prompt_token_ids,
                    text=new_text,
                    token_ids=result.token_ids,
                    logprobs=result.logprobs,
                    prompt_logprobs=result.prompt_logprobs if request.is_finished else None,
                    finish_reason=request.finish_reason,
                )
        if failed:
            raise LlamaError(failed[0])

    def _agreed(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> tuple[list[str | None], list[list[int]], list[SamplingParams]]:
        """Texts, token ids and parameters, one a prompt, known to be the same on every rank.

        Ranks agree before anything is checked: one that raised alone would leave the others
        waiting.
        """
        self.engine.check_ready()
        self.context.agree({"prompts": prompts, "sampling_params": sampling_params})
        many = _as_prompts(prompts)
        params = _as_params(sampling_params, len(many))
        texts = [prompt if isinstance(prompt, str) else None for prompt in many]
        token_ids = [
            self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in many
        ]
        return texts, token_ids, params

    def _output(
        self, index: int, text: str | None, result: FinishedSequence, params: SamplingParams
    ) -> RequestOutput:
        return RequestOutput(
            request_id=index,
            prompt=text,
            prompt_token_ids=result.prompt_token_ids,
            text=final_text(self.tokenizer, list(result.token_ids), params.stop),
            token_ids=result.token_ids,
            logprobs=result.logprobs,
            prompt_logprobs=result.prompt_logprobs,
            finish_reason=result.finish_reason,
        )


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not _is_listed(prompts):
        raise UsageError(f"prompts must be texts or lists of token ids, got {prompts!r:.80}")
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    many: list[Prompt] = list(prompts)  # type: ignore[arg-type]
    for number, prompt in enumerate(many):
        if not _is_listed(prompt):
            raise UsageError(
                f"prompt {number} must be a text or a list of token ids, got {prompt!r:.80}"
            )
    return many


def _is_listed(given: object) -> bool:
    """Whether it is a text or a list; bytes are a sequence of integers, but of no token ids."""
    return isinstance(given, Sequence) and not isinstance(given, bytes | bytearray)


def _as_params(
    params: SamplingParams | Sequence[SamplingParams] | None, n_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * n_prompts
    if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
        raise UsageError(
            f"sampling_params must be SamplingParams or a list of them, got {params!r:.80}"
        )
    if len(params) != n_prompts:
        raise UsageError(
            f"{len(params)} sampling_params for {n_prompts} prompts; give one or as many"
        )
    return list(params)
