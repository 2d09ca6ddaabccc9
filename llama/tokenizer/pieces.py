"""How the pieces of a Hugging Face vocabulary stand for bytes: two ways, told by the decoder.

"Byte level" (GPT-2, Llama 3) writes every byte as one printable character. The other (Llama 2,
Mistral) is SentencePiece's: text with U+2581 for a space, and "<0x41>" for a byte that has no
piece.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from llama.errors import CheckpointError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DECODER_STEPS: Mapping[str, Mapping[str, Any]] = {
    "Replace": {"pattern": {"String": SPACE}, "content": " "},
    "ByteFallback": {},
    "Fuse": {},
    "Strip": {"content": " ", "start": 1, "stop": 0},
    "Metaspace": {"replacement": SPACE},
}


def byte_characters() -> dict[str, int]:
    """GPT-2's character of each byte: itself where printable in Latin-1, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


@dataclass(frozen=True)
class Pieces:
    """`byte_of` is empty unless the vocabulary is byte level.

    `drops_space`: the first space of a text was added by encoding, and decoding takes it away.
    `utf8_errors` is `Tokenizer.utf8_errors` of such a vocabulary.
    """

    byte_of: Mapping[str, int]
    has_byte_pieces: bool
    drops_space: bool

    @classmethod
    def byte_level(cls) -> Pieces:
        return cls(byte_characters(), has_byte_pieces=False, drops_space=False)

    @classmethod
    def of_decoder(cls, decoder: Any, *, path: str) -> Pieces:
        """From the "decoder" section of a tokenizer.json. CheckpointError for an unknown one."""
        found = steps(decoder)
        types = [step["type"] for step in found]
        if types == ["ByteLevel"]:
            return cls.byte_level()
        for step in found:
            if not _is_known(step):
                raise CheckpointError(
                    f"{path}: decoder {step!r:.120} is not supported; known are ByteLevel (GPT-2, "
                    "Llama 3) and SentencePiece's (Llama 2, Mistral). "
                    "Use the tokenizer.model of the same release"
                )
        if not {"Replace", "Metaspace"} & set(types):
            raise CheckpointError(f"{path} has no decoder for its pieces; its steps are {types}")
        return cls(
            {},
            has_byte_pieces="ByteFallback" in types,
            drops_space=any(map(_strips, found)),
        )

    @property
    def utf8_errors(self) -> str:
        return "replace" if self.byte_of else "surrogateescape"

    def to_bytes(self, piece: str) -> bytes:
        if self.byte_of:
            is_bytes = self.byte_of.keys() >= set(piece)
            return bytes(map(self.byte_of.__getitem__, piece)) if is_bytes else piece.encode()
        byte = _BYTE.fullmatch(piece) if self.has_byte_pieces else None
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()

    def missing_bytes(self, vocabulary: Container[str]) -> list[int]:
        """Bytes that a text may have and no piece stands for. UTF-8 never has some, so they may
        be missing.
        """
        name_of = {byte: character for character, byte in self.byte_of.items()}
        names = [name_of.get(byte, f"<0x{byte:02X}>") for byte in range(256)]
        used = [*range(0xC0), *range(0xC2, 0xF5)]
        return [byte for byte in used if names[byte] not in vocabulary]


def steps(section: Any) -> list[dict[str, Any]]:
    """A section of a tokenizer.json that the library could read, its sequences taken apart."""
    if not isinstance(section, dict):
        return []
    if section.get("type") != "Sequence":
        return [section]
    inner = (section.get(key, ()) for key in ("normalizers", "pretokenizers", "decoders"))
    return [step for listed in inner for part in listed for step in steps(part)]


def _is_known(step: Mapping[str, Any]) -> bool:
    expected = _DECODER_STEPS.get(str(step["type"]))
    return expected is not None and all(step.get(key) == value for key, value in expected.items())


def _strips(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        scheme = step.get("prepend_scheme")  # older files have add_prefix_space alone
        return bool(step.get("add_prefix_space", True)) if scheme is None else scheme != "never"
    return bool(step["type"] == "Strip")
