"""SentencePiece tokenizers: Llama 1 and 2, Code Llama, Mistral. It knows no prompt format."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from sentencepiece import SentencePieceProcessor

from llama.errors import CheckpointError, UsageError
from llama.tokenizer.base import Tokenizer, checked_text, read_tokenizer_file

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file. `sp_model` is the processor itself."""

    chat_format = "llama2"
    utf8_errors = "surrogateescape"

    def __init__(self, model_path: str | PathLike[str]) -> None:
        super().__init__(model_path)
        try:
            self.sp_model = SentencePieceProcessor(model_proto=read_tokenizer_file(self.model_path))
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.model_path} is not a whole SentencePiece model; fetch it again ({error})"
            ) from error
        self.n_words: int = self.sp_model.vocab_size()
        self.bos_id: int = self.sp_model.bos_id()
        self.eos_id: int = self.sp_model.eos_id()
        self.pad_id: int = self.sp_model.pad_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise CheckpointError(
                f"{self.model_path} has no begin or end token (bos_id {self.bos_id}, "
                f"eos_id {self.eos_id}), so it belongs to no Llama model"
            )
        self.stop_tokens = {self.eos_id}
        self.special_tokens = {
            self.sp_model.id_to_piece(token_id): token_id
            for token_id in range(self.n_words)
            if self.sp_model.is_control(token_id)
        }

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        try:
            ids: list[int] = self.sp_model.encode(checked_text(s))
        except RuntimeError as error:
            raise UsageError(f"text is not valid Unicode: {s!r:.80}") from error
        return [self.bos_id] * bool(bos) + ids + [self.eos_id] * bool(eos)

    def decode(self, t: int | Sequence[int]) -> str:
        return str(self.sp_model.decode(self._checked_ids(t)))

    def token_bytes(self, token_id: int) -> bytes:
        (token_id,) = self._checked_ids(token_id)
        piece: str = self.sp_model.id_to_piece(token_id)
        if self.sp_model.is_control(token_id):
            return b""
        if self.sp_model.is_unknown(token_id):
            return str(self.sp_model.decode([token_id])).encode()
        if self.sp_model.is_byte(token_id):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()
