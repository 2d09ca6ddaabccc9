"""The plan of a bare forward pass: row i of a batch in the i-th fixed share of the KV cache.

No scheduler and no requests, so that calls with growing positions continue each other.
"""

from __future__ import annotations

from torch import Tensor

from llama.config import EngineConfig
from llama.engine.admission import check_token_ids
from llama.engine.plan import BatchPlan, PlannedSequence
from llama.errors import UsageError


def plan_of_rows(
    token_ids: Tensor, start_pos: int, *, config: EngineConfig, num_blocks: int, vocab_size: int
) -> BatchPlan:
    """Compute integer `token_ids` (batch, seq) at positions `start_pos` and on, sampling nothing.

    Raises UsageError for shapes, positions or ids that the engine has no room for.
    """
    if token_ids.ndim != 2 or not token_ids.numel():
        raise UsageError(
            f"forward takes token ids (batch, seq) of at least one token, got "
            f"{tuple(token_ids.shape)}"
        )
    n_rows, n_new = token_ids.shape
    per_row = config.blocks_per_sequence
    if n_rows > min(config.max_batch_size, num_blocks // per_row):
        raise UsageError(
            f"batch of {n_rows} rows exceeds max_batch_size {config.max_batch_size} or the "
            f"{num_blocks // per_row} rows of max_seq_len that the KV cache holds"
        )
    if start_pos < 0 or start_pos + n_new > config.max_seq_len:
        raise UsageError(
            f"positions {start_pos} to {start_pos + n_new - 1} are outside max_seq_len "
            f"{config.max_seq_len}"
        )
    rows = token_ids.tolist()
    for index, row in enumerate(rows):
        check_token_ids(f"row {index}: token", row, vocab_size)
    return BatchPlan(
        tuple(
            PlannedSequence(
                seq_id=index,
                token_ids=tuple(row),
                start=start_pos,
                block_table=tuple(range(index * per_row, (index + 1) * per_row)),
                sample=False,
                draw=None,
            )
            for index, row in enumerate(rows)
        )
    )
