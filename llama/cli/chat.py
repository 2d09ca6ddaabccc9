"""`llama chat`: a conversation at the terminal.

Rank 0 reads, prints and keeps the conversation. The others are only told the ids of each prompt.
"""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, Literal

from llama.cli.model_options import ModelOptions, Size
from llama.cli.ranks import RankCommand, taking_interrupts
from llama.cli.stats import stats_lines
from llama.cli.terminal import say
from llama.cli.typed import typed
from llama.engine.sequence import SamplingParams
from llama.errors import UsageError
from llama.tokenizer import Message, Tokenizer, encode_dialog

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
        llm = self.model.load()
        if llm.context.rank == 0:
            with taking_interrupts():
                self._lead(llm)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means is for rank 0 to say
            while prompt := from_rank_0([], llm):
                for _ in llm.stream(prompt, self.params):
                    pass
        lines = stats_lines(llm, as_json=self.stats == "json") if self.stats else []
        if llm.context.rank == 0:
            for line in lines:
                say(line)

    def _lead(self, llm: LLM) -> None:
        conversation = Conversation(
            llm.tokenizer,
            system=self.system,
            max_seq_len=self.model.max_seq_len,
            answer_tokens=self.params.max_tokens or DEFAULT_ANSWER_TOKENS,
        )
        say(HINT)
        while True:
            prompt = read_prompt(conversation)
            with StopKey() as stop_key:
                from_rank_0(prompt, llm)
                if not prompt:
                    return
                try:
                    conversation.add_answer(self._answer(prompt, llm, stop_key))
                except BrokenPipeError:  # nobody reads the answers: an end like any other
                    from_rank_0([], llm)
                    raise

    def _answer(self, prompt: list[int], llm: LLM, stop_key: StopKey) -> str:
        """Print the answer as it comes; what there is when Ctrl-C is pressed is the answer."""
        pieces = []
        with closing(llm.stream(prompt, self.params)) as outputs:
            for output in outputs:
                pieces.append(output.text)
                print(output.text, end="", flush=True)
                if stop_key.pressed:
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

        Raises UsageError, and forgets the question, when it is too long by itself.
        """
        messages = [*self._messages, Message(role="user", content=question)]
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

    def add_answer(self, answer: str) -> None:
        self._messages.append(Message(role="assistant", content=answer))

    def reset(self) -> None:
        self._messages.clear()


class StopKey:
    """While it is entered, Ctrl-C sets `pressed` and does nothing else."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> StopKey:
        self._handler_before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._handler_before)

    def _press(self, signum: int, frame: FrameType | None) -> None:
        self.pressed = True


def read_prompt(conversation: Conversation) -> list[int]:
    """Prompt ids for the next question that is typed; [] when the user has had enough."""
    while True:
        try:
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


def from_rank_0(token_ids: list[int], llm: LLM) -> list[int]:
    """Rank 0's `token_ids` on every rank. Collective over the world."""
    world = llm.context.world
    if world.size == 1:
        return token_ids
    import torch

    size = int(world.broadcast(torch.tensor([len(token_ids)])))
    mine = token_ids if world.rank == 0 else [0] * size
    received: list[int] = world.broadcast(torch.tensor(mine, dtype=torch.int64)).tolist()
    return received


@typed
def chat(
    ckpt_dir: str,
    *,
    system: str | None = None,
    tokenizer_path: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int | None = None,
    tp: Size = None,
    pp: Size = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    max_seq_len: int = 2048,
    format: str | None = None,
    verify: bool = False,
    stats: bool | Literal["json"] = False,
) -> Chat:
    """Talk with a chat model; /reset forgets the conversation, /quit ends it.

    Args:
        ckpt_dir: folder of the checkpoint
        system: what the model is told before the conversation
        tokenizer_path: file of the tokenizer; by default the one in ckpt_dir or beside it
        max_tokens: longest answer, in tokens; by default as long as the context allows
        temperature: 0 takes the most probable token every time
        top_p: draw from the most probable tokens that make up this share; 1 is off
        top_k: draw from this many most probable tokens; 0 is off
        seed: the same seed gives the same answers on every layout
        tp: tensor parallel size, or auto; with pp, as many ranks as needed are started
        pp: pipeline parallel size, or auto
        dtype: float32, bfloat16 or float16
        device: cpu, cuda or mps
        backend: gloo or nccl
        max_seq_len: longest conversation with its answer, in tokens
        format: format of the checkpoint, where it is not recognised
        verify: check every file against checklist.chk or MANIFEST.sha256 before it is used
        stats: at the end, tell what every rank loaded and did; "--stats json" as one object a rank
    """
    return Chat(
        ModelOptions(
            ckpt_dir=ckpt_dir,
            tokenizer_path=tokenizer_path,
            format=format,
            verify=verify,
            tp=tp,
            pp=pp,
            dtype=dtype,
            device=device,
            backend=backend,
            max_seq_len=max_seq_len,
            max_batch_size=1,
        ),
        system,
        SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens
        ),
        stats,
    )
