"""Small tokenizer files with the settings of Llama 2's and Llama 3's own, made on the spot."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterable, Mapping
from operator import itemgetter
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
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TIKTOKEN_BROKEN = (b" \xf0\x9f", b"\x80\xe6", b"\xe2\x80")


def write_sentencepiece(path: Path, *, vocab_size: int = 400, control: Iterable[str] = ()) -> Path:
    """A `tokenizer.model` of `vocab_size` (at least 330) ids: unk 0, bos 1, eos 2, no pad.

    `control` pieces have the ids from 3 on, and the 256 bytes follow.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=-1,
        byte_fallback=True,
        control_symbols=list(control),
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def append_pieces(path: Path, words: Iterable[str]) -> dict[str, int]:
    """Add pieces to a SentencePiece file, so that text merges to each of `words` before all else.

    The ids by piece, which go on where the file ended. What a word needs on its way is added too.
    """
    before = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids: dict[str, int] = {}
    added = b""
    for word in words:
        for end in range(1, len(word) + 1):
            piece = word[:end]
            if piece in ids or before.id_to_piece(before.piece_to_id(piece)) == piece:
                continue
            ids[piece] = before.vocab_size() + len(ids)
            # ModelProto.pieces is field 1; of a piece the text is field 1, the score field 2.
            text = piece.encode()
            message = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 1.0)
            added += b"\x0a" + bytes([len(message)]) + message
    path.write_bytes(path.read_bytes() + added)
    return ids


def write_codellama(path: Path, *, step: bool = False) -> dict[str, int]:
    """A file with Code Llama's pieces for infilling, or 70B's <step>; their ids by piece."""
    write_sentencepiece(path)
    names = ["<step>"] if step else ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "☺"]
    return append_pieces(path, names)


def write_tekken(
    path: Path, *, n_special: int = 24, version: str = "v3", words: Iterable[str] = TIKTOKEN_WORDS
) -> Path:
    """A tekken.json that lists two tokens more than its model has, as the published ones do."""
    ranks = byte_ranks()
    for word in [*words, "unused"]:
        for end in range(2, len(word.encode()) + 1):
            ranks.setdefault(word.encode()[:end], len(ranks))
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks.items()
    ]
    vocabulary.sort(key=itemgetter("rank"))
    config = {
        "pattern": TEKKEN_SPLIT,
        "num_vocab_tokens": len(ranks),
        "default_vocab_size": len(ranks) + n_special - 2,
        "default_num_special_tokens": n_special,
        "version": version,
    }
    path.write_text(json.dumps({"config": config, "vocab": vocabulary}))
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
