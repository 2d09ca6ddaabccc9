"""What a request must satisfy to be queued: its tokens and the blocks it may need. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from llama.config import EngineConfig
from llama.engine.sequence import Sequence
from llama.errors import UsageError
from llama.kvcache.blocks import BlockManager


def most_computed(sequence: Sequence, max_seq_len: int) -> int:
    """Tokens the KV cache may have to hold for it: the last one generated is never computed."""
    prompt = len(sequence.prompt_token_ids)
    return max(prompt, sequence.max_num_tokens(max_seq_len) - 1)


def check_request(
    sequence: Sequence,
    *,
    config: EngineConfig,
    blocks: BlockManager,
    vocab_size: int,
) -> None:
    """Raises UsageError for a request that could never run, with the limit that it exceeds."""
    name = f"request {sequence.seq_id}"
    prompt = len(sequence.prompt_token_ids)
    if not prompt:
        raise UsageError(f"{name} has an empty prompt; give at least one token")
    if prompt > config.max_seq_len:
        raise UsageError(
            f"{name} has a prompt of {prompt} tokens, max_seq_len is {config.max_seq_len}; "
            f"shorten the prompt, or raise max_seq_len as far as the model's positions go"
        )
    check_token_ids(f"{name}: prompt token", sequence.prompt_token_ids, vocab_size)
    check_token_ids(f"{name}: stop_token_ids", sequence.params.stop_token_ids, vocab_size)
    need = blocks.blocks_for(most_computed(sequence, config.max_seq_len))
    if need > blocks.num_blocks:
        raise UsageError(
            f"{name} may reach {sequence.max_num_tokens(config.max_seq_len)} tokens, {prompt} of "
            f"them prompt, and then needs {need} KV blocks of {blocks.block_size} tokens, but the "
            f"cache has {blocks.num_blocks}; lower max_tokens, shorten the prompt, or raise "
            f"num_blocks"
        )


def check_token_ids(what: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises UsageError for the first id that is not in the vocabulary; `what` names the ids."""
    for position, token_id in enumerate(token_ids):
        is_int = isinstance(token_id, int) and not isinstance(token_id, bool)
        if not is_int or not 0 <= token_id < vocab_size:
            raise UsageError(
                f"{what} {position} is {token_id!r}; ids are integers from 0 to {vocab_size - 1}"
            )
