"""Bare forward passes: row i of a batch lives in the i-th fixed share of the KV cache.

No scheduler and no requests, so that calls with growing positions continue each other.
"""

from __future__ import annotations

from torch import Tensor

from llama.config import EngineConfig, ModelConfig
from llama.engine.admission import check_token_ids
from llama.engine.plan import BatchPlan, PlannedSequence
from llama.errors import UsageError


class Rows:
    """Plans of rows, and how far each row has come.

    A row is a ring of `ring_blocks`: under sliding windows its old tokens are written over.
    """

    def __init__(
        self, model_config: ModelConfig, config: EngineConfig, *, num_blocks: int, ring_blocks: int
    ) -> None:
        self._window = model_config.widest_window
        self._vocab_size = model_config.vocab_size
        self._config = config
        self._ring_blocks = ring_blocks
        self._n_rows = min(config.max_batch_size, num_blocks // ring_blocks)
        self._num_blocks = num_blocks
        self._ends = [0] * self._n_rows

    def plan(self, token_ids: Tensor, start_pos: int) -> BatchPlan:
        """Compute integer `token_ids` (batch, seq) at positions `start_pos` and on, sampling
        nothing.

        Where RoPE depends on the prompt's length, that is all tokens up to the last of this call,
        as in a forward pass of transformers with a cache.
        Raises UsageError for shapes, positions or ids that the engine has no room for, when
        `start_pos` leaves a gap, and when it goes back to where tokens before it are written over.
        """
        self._check(token_ids, start_pos)
        rows = token_ids.tolist()
        for index, row in enumerate(rows):
            check_token_ids(f"row {index}: token", row, self._vocab_size)
        stop = start_pos + token_ids.shape[1]
        for index in range(len(rows)):
            self._ends[index] = max(stop, self._ends[index]) if start_pos else stop
        size = self._ring_blocks
        return BatchPlan(
            tuple(
                PlannedSequence(
                    seq_id=index,
                    token_ids=tuple(row),
                    start=start_pos,
                    num_prompt_tokens=stop,
                    block_table=tuple(range(index * size, (index + 1) * size)),
                    sample=False,
                    draw=None,
                )
                for index, row in enumerate(rows)
            )
        )

    def _check(self, token_ids: Tensor, start_pos: int) -> None:
        if not isinstance(token_ids, Tensor):
            raise UsageError(f"forward takes a tensor of integer token ids, got {token_ids!r:.80}")
        if token_ids.ndim != 2 or not token_ids.numel():
            raise UsageError(
                f"forward takes token ids (batch, seq) of at least one token, got "
                f"{tuple(token_ids.shape)}"
            )
        if token_ids.is_floating_point():
            raise UsageError(f"forward takes integer token ids, got {token_ids.dtype}")
        n_rows, n_new = token_ids.shape
        if n_rows > self._n_rows:
            raise UsageError(
                f"batch of {n_rows} rows exceeds max_batch_size {self._config.max_batch_size} or "
                f"the {self._num_blocks // self._ring_blocks} rows of max_seq_len that the KV "
                f"cache holds"
            )
        if start_pos < 0 or start_pos + n_new > self._config.max_seq_len:
            raise UsageError(
                f"positions {start_pos} to {start_pos + n_new - 1} are outside max_seq_len "
                f"{self._config.max_seq_len}"
            )
        if start_pos:
            self._check_continues(n_rows, start_pos)

    def _check_continues(self, n_rows: int, start_pos: int) -> None:
        known = min(self._ends[:n_rows])
        if start_pos > known:
            raise UsageError(
                f"start_pos {start_pos} leaves a gap: {known} positions of these rows are "
                f"computed; go on at {known} or before it"
            )
        end = max(self._ends[:n_rows])
        kept_from = max(0, end - self._ring_blocks * self._config.block_size)
        seen_from = 0 if self._window is None else max(0, start_pos - self._window + 1)
        if seen_from < kept_from:
            raise UsageError(
                f"start_pos {start_pos} sees positions from {seen_from} on, but the sliding window "
                f"of {self._window} moved on to {end}, and only those from {kept_from} on are "
                f"kept; start again at 0"
            )
