"""Prompts that ask for what is missing between two texts, as Code Llama was trained on them.

Source: `infilling_prompt_tokens` of Meta's codellama repository.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama.errors import UsageError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.sentencepiece import INFILLING_PIECES, SentencePieceTokenizer


def infilling_prompt_tokens(
    tokenizer: Tokenizer, pre: str, suf: str, suffix_first: bool = False
) -> list[int]:
    """Meta's name for `InfillingFormat.encode_prompt`."""
    return InfillingFormat.of(tokenizer).encode_prompt(pre, suf, suffix_first=suffix_first)


@dataclass(frozen=True)
class InfillingFormat:
    """A tokenizer that has every token of an infilling prompt and of its answer."""

    tokenizer: SentencePieceTokenizer
    prefix_id: int
    suffix_id: int
    middle_id: int
    eot_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> InfillingFormat:
        """UsageError for a tokenizer without these tokens."""
        marks = (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id, tokenizer.eot_id)
        ids = [token_id for token_id in marks if token_id is not None]
        if not isinstance(tokenizer, SentencePieceTokenizer) or len(ids) < len(marks):
            raise UsageError(
                f"infilling needs the tokens {', '.join(INFILLING_PIECES)}, which "
                f"{tokenizer.model_path} does not have; use Code Llama 7B or 13B with the "
                "tokenizer.model that came with it"
            )
        return cls(tokenizer, *ids)

    @property
    def stop_tokens(self) -> set[int]:
        """EOT, and what ends any other answer."""
        return {self.eot_id, *self.tokenizer.stop_tokens}

    def encode_prompt(self, pre: str, suf: str, *, suffix_first: bool) -> list[int]:
        """Ids that ask for the text between `pre` and `suf`, which the model closes with EOT.

        In one of two orders: PRE `pre` SUF `suf` MID, or with `suffix_first` PRE SUF `suf` MID
        `pre`.
        """
        before = self.tokenizer.encode(pre, False, False)
        after = self.tokenizer.encode_infilling(suf)
        start = [self.tokenizer.bos_id, self.prefix_id]
        if suffix_first:
            return [*start, self.suffix_id, *after, self.middle_id, *before]
        return [*start, *before, self.suffix_id, *after, self.middle_id]
