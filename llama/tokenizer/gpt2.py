"""GPT-2's tokenizer: vocab.json and merges.txt, as Megatron-LM and Hugging Face use them.

The files are parsed here; the merging is the `tokenizers` library's.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from llama.errors import CheckpointError
from llama.tokenizer.base import read_tokenizer_file
from llama.tokenizer.find import merges_beside
from llama.tokenizer.json_file import MAX_BYTES, read_object
from llama.tokenizer.library import (
    LibraryTokenizer,
    check_bytes,
    checked_vocabulary,
    guarded,
)
from llama.tokenizer.pieces import Pieces
from llama.tokenizer.roles import read_roles

END_OF_TEXT = "<|endoftext|>"


class Gpt2Tokenizer(LibraryTokenizer):
    """A vocab.json, whose merges.txt lies beside it. One token both begins and ends a text:
    <|endoftext|>, unless files beside them say something else.
    """

    chat_format = None

    def __init__(self, model_path: str | PathLike[str]) -> None:
        super().__init__(model_path)
        path = Path(self.model_path)
        merges_path = merges_beside(path)
        vocabulary = checked_vocabulary(read_object(path), path=str(path))
        merges = parse_merges(
            read_tokenizer_file(merges_path, limit=MAX_BYTES), name=str(merges_path)
        )
        model = guarded(
            lambda: models.BPE(vocab=vocabulary, merges=merges),
            f"{merges_path} does not belong to {path}; fetch both again",
        )
        pieces = Pieces.byte_level()
        check_bytes(pieces, vocabulary, unk_token=None, path=str(path))
        library = Tokenizer(model)
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        roles = read_roles(
            path.parent, vocabulary, n_words=1 + max(vocabulary.values()), default=END_OF_TEXT
        )
        marks = {roles.bos_id, roles.eos_id}
        added = {name: token_id for name, token_id in vocabulary.items() if token_id in marks}
        self._set_up(
            library, vocabulary=vocabulary, added=added, silent=added, pieces=pieces, roles=roles
        )
        self.adds_bos = bool(roles.adds_bos)  # GPT-2 itself was trained without
        self.files = (*self.files, str(merges_path))


def parse_merges(data: bytes, *, name: str) -> list[tuple[str, str]]:
    """Pairs to merge, best first. CheckpointError with `name` and the line for what is no pair."""
    try:
        lines = data.decode("utf-8").split("\n")  # pieces may hold what splitlines takes for an end
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name} is not UTF-8: {error}; fetch it again") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.removesuffix("\r").partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(
                f"{name} line {number} is not two pieces: {line[:80]!r}; fetch the file again"
            )
        merges.append((left, right))
    return merges
