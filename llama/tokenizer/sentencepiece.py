"""SentencePiece tokenizers: Llama 1 and 2, Code Llama, Mistral. It knows no prompt format."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from sentencepiece import SentencePieceProcessor

from llama.errors import CheckpointError
from llama.tokenizer.base import Tokenizer, checked_text, read_tokenizer_file
from llama.tokenizer.chat.pick import format_of_tokens
from llama.tokenizer.chat.tags import STEP
from llama.tokenizer.pieces import SPACE

INFILLING_PIECES = tuple(f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))
# In Code Llama's files these are pieces like any other, which text can become.
_MARKS = dict(
    zip(
        ("prefix_id", "suffix_id", "middle_id", "eot_id", "step_id"),
        (*INFILLING_PIECES, STEP),
        strict=True,
    )
)
# In text encoded alone a space comes before it, and nothing merges with it.
_MARKER = "\N{WHITE SMILING FACE}"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file. `sp_model` is the processor itself.

    With a `step_id`, which ends the turns of Code Llama 70B, answers stop there too.
    """

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
        self._set_marks()
        self.chat_format = format_of_tokens(self.special_tokens, self.model_path, default="llama2")

    def _set_marks(self) -> None:
        """Find Code Llama's tokens, and how to write their names without them."""
        self._spelled: dict[int, list[int]] = {}
        for attribute, piece in _MARKS.items():
            token_id = self.sp_model.piece_to_id(piece)
            if self.sp_model.is_unknown(token_id):
                continue
            setattr(self, attribute, token_id)
            self.special_tokens[piece] = token_id
            self._spelled[token_id] = [
                part_id for character in piece for part_id in self._ids_of_character(character)
            ]
        if self.step_id is not None:
            self.stop_tokens.add(self.step_id)

    def _ids_of_character(self, character: str) -> list[int]:
        token_id: int = self.sp_model.piece_to_id(character)
        if not self.sp_model.is_unknown(token_id):
            return [token_id]
        return [self.sp_model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        ids: list[int] = self.sp_model.encode(checked_text(s))
        if not self._spelled.keys().isdisjoint(ids):
            ids = [part for token_id in ids for part in self._spelled.get(token_id, (token_id,))]
        return [self.bos_id] * bool(bos) + ids + [self.eos_id] * bool(eos)

    def decode(self, t: int | Sequence[int]) -> str:
        return str(self.sp_model.decode(self._checked_ids(t)))

    def token_piece(self, t: int) -> str:
        """The piece of an id as the file has it: with U+2581 for a space, "<0x0A>" for a byte."""
        (token_id,) = self._checked_ids(t)
        return str(self.sp_model.id_to_piece(token_id))

    def encode_infilling(self, s: str) -> list[int]:
        """Ids of `s` in the middle of a text: without the space that `encode` puts before it."""
        return self.encode(_MARKER + s, False, False)[len(self._marker_ids()) :]

    def decode_infilling(self, t: list[int]) -> str:
        """Text that these ids add in the middle of a text: a space at its start is kept."""
        return self.decode([*self._marker_ids(), *t]).removeprefix(_MARKER)

    def _marker_ids(self) -> list[int]:
        return self.encode(_MARKER, False, False)

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
