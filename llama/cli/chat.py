"""`llama chat`: a conversation at the terminal.

Rank 0 reads, prints and keeps the conversation. The others are only told the ids of each prompt.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, Literal

from llama.cli.model_options import ModelFlags, ModelOptions, SamplingFlags
from llama.cli.option_groups import grouped
from llama.cli.phases import StartClock
from llama.cli.ranks import RankCommand, from_rank_0, taking_interrupts
from llama.cli.stats import stats_lines
from llama.cli.terminal import say
from llama.cli.typed import typed
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.tokenizer import Message, Tokenizer, encode_dialog
from llama.tokenizer.chat import has_special_tags

if TYPE_CHECKING:
    from llama.llm import LLM

HINT = "/reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer"
DEFAULT_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Chat(RankCommand):
    """Read a question, stream the answer, until /quit or the end of the input."""

    model: ModelOptions
    system: str | None
    params: SamplingParams
    stats: bool | Literal["json"]
    is_conversation: ClassVar[bool] = True

    def run(self) -> None:
        clock = StartClock()
        llm = self.model.load()
        clock.built()
        # A model without a chat format is refused here, not at every question.
        encode_dialog(llm.tokenizer, [Message(role="user", content="")])
        if llm.context.rank == 0:
            with StopKey() as stop_key, taking_interrupts():
                self._lead(llm, stop_key)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means is for rank 0 to say
            while prompt := from_rank_0([], llm):
                for _ in llm.stream(prompt, self.params):
                    pass
        lines = stats_lines(llm, clock, as_json=self.stats == "json") if self.stats else []
        if llm.context.rank == 0:
            for line in lines:
                say(line)

    def _lead(self, llm: LLM, stop_key: StopKey) -> None:
        conversation = Conversation(
            llm.tokenizer,
            system=self.system,
            max_seq_len=llm.engine.config.max_seq_len,
            answer_tokens=self.params.max_tokens or DEFAULT_ANSWER_TOKENS,
        )
        say(HINT)
        while True:
            prompt = read_prompt(conversation, stop_key)
            from_rank_0(prompt, llm)
            if not prompt:
                return
            try:
                conversation.add_answer(self._answer(prompt, llm, stop_key))
            except BrokenPipeError:  # nobody reads the answers: an end like any other
                from_rank_0([], llm)
                raise
            if llm.context.drain.is_asked:
                from_rank_0([], llm)
                return

    def _answer(self, prompt: list[int], llm: LLM, stop_key: StopKey) -> str:
        """Print the answer as it comes; what there is when Ctrl-C is pressed is the answer.

        SIGTERM cuts it off as well: nobody would wait for the rest.
        """
        pieces = []
        with closing(llm.stream(prompt, self.params)) as outputs:
            for output in outputs:
                pieces.append(output.text)
                print(output.text, end="", flush=True)
                if stop_key.pressed or llm.context.drain.is_asked:
                    break
        print(flush=True)
        return "".join(pieces)


class Conversation:
    """The messages of a chat; the oldest are dropped when prompt and answer would not fit together.

    `answer_tokens` of `max_seq_len` are kept free for the answer, but never more than half.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, system: str | None, max_seq_len: int, answer_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._system = [Message(role="system", content=system)] if system else []
        self._max_prompt_tokens = max_seq_len - min(answer_tokens, max_seq_len // 2)
        self._messages: list[Message] = []

    def ask(self, question: str) -> list[int]:
        """Prompt ids of the conversation with `question` at its end.

        Raises UsageError, and forgets the question, when it is too long by itself, and where it
        holds a tag that would end its turn.
        """
        messages = [*self._messages, Message(role="user", content=question)]
        self._check_tags([*self._system, messages[-1]])
        while True:
            prompt = encode_dialog(self._tokenizer, [*self._system, *messages])
            if len(prompt) <= self._max_prompt_tokens:
                break
            if len(messages) == 1:
                raise UsageError(
                    f"this message makes a prompt of {len(prompt)} tokens but there is room for "
                    f"{self._max_prompt_tokens}; shorten it or raise max_seq_len"
                )
            del messages[:2]  # a question and its answer
        if n_dropped := len(self._messages) + 1 - len(messages):
            say(f"the context is full: the oldest {n_dropped} messages are forgotten")
        self._messages = messages
        return prompt

    def _check_tags(self, messages: list[Message]) -> None:
        if has_special_tags(messages, chat_format=self._tokenizer.chat_format):
            raise UsageError(
                "a message holds a tag that marks turns for this model, such as [INST], and could "
                "pass for another turn; write it differently"
            )

    def add_answer(self, answer: str) -> None:
        self._messages.append(Message(role="assistant", content=answer))

    def reset(self) -> None:
        self._messages.clear()


class StopKey:
    """While it is entered, Ctrl-C sets `pressed`, and only a `reading` ends by KeyboardInterrupt.

    Once, however often the key is pressed: nobody could catch the next one.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._is_reading = False

    def __enter__(self) -> StopKey:
        self._handler_before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._handler_before)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What was pressed in here, or before, is no longer `pressed` afterwards."""
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = self.pressed = False

    def _press(self, signum: int, frame: FrameType | None) -> None:
        self.pressed = True
        if self._is_reading:
            self._is_reading = False
            raise KeyboardInterrupt


def read_prompt(conversation: Conversation, stop_key: StopKey) -> list[int]:
    """Prompt ids for the next question that is typed; [] when the user has had enough."""
    while True:
        try:
            with stop_key.reading():
                line = input("> " if sys.stdin.isatty() else "").strip()
            if line == "/quit":
                return []
            if line == "/reset":
                conversation.reset()
            elif line.startswith("/"):
                say(HINT)
            elif line:
                return conversation.ask(line)
        except EOFError:
            return []
        except KeyboardInterrupt:
            say(f"\n{HINT}")
        except UsageError as error:
            say(f"error: {error}")


@typed
@grouped
def chat(
    ckpt_dir: str,
    *,
    system: str | None = None,
    chat_format: str | None = None,
    max_tokens: int | None = None,
    sampling: SamplingFlags,
    model: ModelFlags,
    stats: bool | Literal["json"] = False,
) -> Chat:
    """Talk with a chat model; /reset forgets the conversation, /quit ends it.

    Args:
        ckpt_dir: folder of the checkpoint
        system: what the model is told before the conversation
        chat_format: layout of the conversation, such as mistral-v1; by default the model's own
        max_tokens: longest answer, in tokens; by default as long as the context allows
        max_seq_len: longest conversation with its answer, in tokens; by default 2048, or as far as
            the positions of the model go
        stats: at the end, tell what every rank loaded and did; "--stats json" as one object a rank
    """
    return Chat(
        ModelOptions(**vars(model), ckpt_dir=ckpt_dir, max_batch_size=1, chat_format=chat_format),
        system,
        sampling.params(max_tokens=max_tokens),
        stats,
    )
