"""Every token is scored once, with as much before it as the context allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama.cli.windows import Window, windows
from llama.errors import UsageError


def test_windows_end_a_stride_apart_and_the_last_with_the_text() -> None:
    assert windows(10, max_seq_len=4, stride=2) == [
        Window(0, 4, 1),
        Window(2, 6, 4),
        Window(4, 8, 6),
        Window(6, 10, 8),
    ]
    assert windows(8, max_seq_len=5, stride=4) == [Window(0, 5, 1), Window(3, 8, 5)]
    assert windows(4, max_seq_len=4, stride=2) == [Window(0, 4, 1)]
    assert windows(3, max_seq_len=2048, stride=1024) == [Window(0, 3, 1)]


@given(
    n_tokens=st.integers(2, 300),
    sizes=st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
)
def test_every_token_but_the_first_is_scored_once(n_tokens: int, sizes: tuple[int, int]) -> None:
    max_seq_len, stride = sizes
    found = windows(n_tokens, max_seq_len=max_seq_len, stride=stride)
    scored = [token for window in found for token in range(window.first, window.stop)]
    assert scored == list(range(1, n_tokens))
    for window in found:
        assert window.stop - window.start == min(max_seq_len, n_tokens)
        assert window.first - window.start >= (max_seq_len - stride if window.start else 1)


@pytest.mark.parametrize(
    ("n_tokens", "max_seq_len", "stride", "message"),
    [
        (9, 4, 4, "--stride must be from 1 to max_seq_len - 1 = 3, got 4"),
        (9, 4, 0, "--stride must be from 1"),
        (9, 1, 1, "--max_seq_len must be at least 2"),
        (1, 4, 2, "the text has 1 token"),
        (0, 4, 2, "the text has 0 token"),
    ],
)
def test_what_cannot_be_cut(n_tokens: int, max_seq_len: int, stride: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        windows(n_tokens, max_seq_len=max_seq_len, stride=stride)
