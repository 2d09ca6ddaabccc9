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
    """Feeding character by character emits exactly the text before the first stop string."""
    seen, emitted = "", ""
    for character in text:
        seen, stopped = cut_at_stop(seen + character, stop)
        if stopped:
            break
        emitted = seen[: len(seen) - held_back(seen, stop)]
        assert (seen + "\0").startswith(emitted)
    final, _ = cut_at_stop(text, stop)
    assert seen == final
    assert final.startswith(emitted)
