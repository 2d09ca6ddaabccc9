"""Stop strings are found early, and nothing of one is ever handed out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama.engine.output import cut_at_stop, held_back

_TEXTS = st.text(alphabet="ab\n", max_size=12)
_STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


def test_the_earliest_stop_string_cuts() -> None:
    assert cut_at_stop("one END two STOP", ("STOP", "END")) == ("one ", True)
    assert cut_at_stop("nothing here", ("STOP",)) == ("nothing here", False)
    assert cut_at_stop("no stop strings", ()) == ("no stop strings", False)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert held_back("tell me\n", ("\n\nUser",)) == 1
    assert held_back("tell me\n\nUs", ("\n\nUser", "s!")) == 4
    assert held_back("tell me", ("\n",)) == 0


@given(_TEXTS, _STOPS)
def test_a_stream_never_shows_part_of_a_stop_string(text: str, stop: tuple[str, ...]) -> None:
    """Character by character, up to the first stop string; what is shown is never taken back."""
    seen, shown = "", ""
    for n_fed in range(1, len(text) + 1):
        seen, stopped = cut_at_stop(seen + text[n_fed - 1], stop)
        assert (seen, stopped) == cut_at_stop(text[:n_fed], stop)
        assert seen.startswith(shown)
        if stopped:
            break
        n_held = held_back(seen, stop)
        held = seen[len(seen) - n_held :]
        assert not held or any(string.startswith(held) for string in stop)
        assert not any(string in seen[:-n_held] for string in stop if n_held)
        shown = seen[: len(seen) - n_held]


@given(_TEXTS, _STOPS)
def test_no_more_is_held_back_than_a_stop_string_can_need(text: str, stop: tuple[str, ...]) -> None:
    """One more character shown would be the beginning of a stop string."""
    text, _ = cut_at_stop(text, stop)
    starts = [n for n in range(1, len(text) + 1) for s in stop if s[:-1][:n] == text[-n:]]
    assert held_back(text, stop) == max(starts, default=0)
