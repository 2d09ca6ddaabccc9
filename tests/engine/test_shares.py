"""Plans in flight get equal parts, and prompts enough pieces to fill a pipeline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama.engine.shares import CHUNKS_PER_STAGE, MIN_CHUNK_TOKENS, chunk_share, fair_share


@given(st.integers(1, 200), st.integers(1, 9))
def test_an_empty_ring_is_filled_evenly(total: int, plans: int) -> None:
    sizes: list[int] = []
    while len(sizes) < plans and sum(sizes) < total:
        sizes.append(fair_share(total, sum(sizes), plans=plans, plans_out=len(sizes)))
    assert sum(sizes) == total and len(sizes) == min(plans, total)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 9))
def test_a_plan_never_takes_more_than_its_share_of_all(ready: int, out: int, plans: int) -> None:
    share = fair_share(ready + out, out, plans=plans, plans_out=plans - 1)
    assert 1 <= share <= max(1, -(-(ready + out) // plans))


@given(st.integers(0, 100_000), st.integers(2, 8))
def test_a_pipeline_is_idle_for_a_sixteenth_of_long_prompts(total: int, plans: int) -> None:
    chunk = chunk_share(total, plans=plans)
    assert chunk >= MIN_CHUNK_TOKENS
    if chunk > MIN_CHUNK_TOKENS:
        assert chunk * (CHUNKS_PER_STAGE * plans - 1) < total <= chunk * CHUNKS_PER_STAGE * plans
