"""Small tokenizer files with the settings of Llama 2's and Llama 3's own, made on the spot."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece

CORPUS = (
    "I believe the meaning of life is to be happy.",
    "The quick brown fox jumps over the lazy dog 0123456789 times",
    "[INST] what is the capital of France? [/INST] Paris, of course.",
    "def f(x):    return x + 1  # indented code, (brackets) and <tags>",
    "naïve café über straße",
)
TIKTOKEN_WORDS = (" hello", "world", "user", "system", "assistant", "\n\n", "é", "日本")
# Published tokenizers have such tokens, which end inside a character.
TIKTOKEN_BROKEN = (b" \xf0\x9f", b"\x80\xe6", b"\xe2\x80")


def write_sentencepiece(path: Path, *, vocab_size: int = 400) -> Path:
    """A `tokenizer.model` of `vocab_size` (at least 330) ids: unk 0, bos 1, eos 2, no pad."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=-1,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def write_ranks(path: Path, ranks: Mapping[bytes, int]) -> Path:
    """A rank file, one "base64 rank" line a token, in rank order."""
    lines = sorted((rank, base64.b64encode(token).decode()) for token, rank in ranks.items())
    path.write_text("".join(f"{token} {rank}\n" for rank, token in lines))
    return path


def byte_ranks() -> dict[bytes, int]:
    """Every single byte at the rank of the published files: the printable ones come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {bytes([byte]): rank for rank, byte in enumerate(printable + others)}


def write_tiktoken(path: Path, *, words: Iterable[str] = TIKTOKEN_WORDS) -> Path:
    """A Llama-3-style `tokenizer.model` that merges up to each of `words`; 256 specials follow."""
    ranks = byte_ranks()
    tokens = [word.encode() for word in words] + list(TIKTOKEN_BROKEN)
    for token in tokens:
        for end in range(2, len(token) + 1):
            ranks.setdefault(token[:end], len(ranks))
    return write_ranks(path, ranks)


def write_llama3_like(path: Path, tokens: Mapping[int, str]) -> Path:
    """A file of all 128000 ranks, with `tokens` (rank -> text) where the published one has them."""
    ranks = byte_ranks()
    for rank in range(len(ranks), 128000):
        filler = b"\xff" + rank.to_bytes(3, "big")  # in no text, since 0xff is in no UTF-8
        ranks[tokens[rank].encode() if rank in tokens else filler] = rank
    return write_ranks(path, ranks)
