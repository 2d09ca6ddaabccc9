"""Where a model comes from: a folder, and what the user said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint import open_checkpoint
from llama.checkpoint.reader import CheckpointReader
from llama.config import ModelConfig
from llama.errors import CheckpointError
from llama.tokenizer import Message, Tokenizer, encode_dialog, find_tokenizer, pick_chat_format

_MOST_PADDING = 1024


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint folder; None finds out. `verify` checks its files against their checksums,
    `chat_format` is a name in CHAT_FORMATS.
    """

    ckpt_dir: str | Path
    tokenizer_path: str | Path | None = None
    format: str | None = None
    verify: bool = False
    chat_format: str | None = None

    def open(self) -> CheckpointReader:
        """Raises CheckpointError, UsageError, UnknownNameError; see `open_checkpoint`."""
        return open_checkpoint(self.ckpt_dir, format=self.format)

    def open_tokenizer(self, reader: CheckpointReader) -> Tokenizer:
        """The tokenizer of the weights in `reader`, with the chat format of the model.

        Raises CheckpointError, UsageError for a chat format that it cannot write.
        """
        tokenizer = Tokenizer(str(self.tokenizer_path or find_tokenizer(self.ckpt_dir)))
        if self.tokenizer_path is None:
            tokenizer = with_added_tokens(tokenizer, n_rows=reader.config.vocab_size)
        check_vocabulary(reader.config, tokenizer, format=reader.format, ckpt_dir=self.ckpt_dir)
        picked = pick_chat_format(tokenizer, family=reader.family)
        tokenizer.chat_format = self.chat_format or picked
        if self.chat_format is not None:  # tried now, not when the weights are loaded
            encode_dialog(tokenizer, [Message(role="user", content="")])
        return tokenizer


def with_added_tokens(tokenizer: Tokenizer, *, n_rows: int) -> Tokenizer:
    """The tokenizer.json beside a tokenizer.model, where it alone has tokens added later for which
    the weights have rows: fine-tuned chat models end their answers with such a token.
    """
    path = Path(tokenizer.model_path)
    beside = path.with_name("tokenizer.json")
    if path.name != "tokenizer.model" or tokenizer.n_words >= n_rows or not beside.is_file():
        return tokenizer
    larger = Tokenizer(beside)
    return larger if tokenizer.n_words < larger.n_words <= n_rows else tokenizer


def check_vocabulary(
    config: ModelConfig, tokenizer: Tokenizer, *, format: str, ckpt_dir: str | Path
) -> None:
    """Raises CheckpointError when the tokenizer does not belong to the weights.

    Meta's have a row for every token and no other. Other formats pad the vocabulary, Megatron-LM to
    a multiple of 128 · tp_size.
    """
    n_padding = config.vocab_size - tokenizer.n_words
    if not 0 <= n_padding <= (0 if format == "meta" else _MOST_PADDING):
        raise CheckpointError(
            f"tokenizer {tokenizer.model_path} has {tokenizer.n_words} tokens but the weights in "
            f"{ckpt_dir} have a vocabulary of {config.vocab_size}; "
            "use the tokenizer that came with the checkpoint"
        )
