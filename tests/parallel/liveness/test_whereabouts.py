"""Where a rank is, in words; and that an error remembers where it was raised."""

from __future__ import annotations

import pytest

from llama.parallel.liveness.whereabouts import Phase, Whereabouts


def test_what_is_known_is_told() -> None:
    at = Whereabouts()
    assert at.describe() == "INIT (starting)"
    with at.during(Phase.STEP, "generate"):
        at.at_step(41)
        at.at_layer(3)
        assert at.describe() == "STEP (generate, step 41, layer 3)"
        at.at_step(42)
        assert at.describe() == "STEP (generate, step 42)"
    assert at.describe() == "INIT (starting)"
    with at.during(Phase.LOAD, "loading"):
        at.at_file("w.pth")
        assert at.describe() == "LOAD (loading, w.pth)"


def test_everything_that_begins_or_ends_is_progress() -> None:
    at = Whereabouts()
    counts = [at.n_done]
    with at.during(Phase.LOAD, "loading"):
        counts.append(at.n_done)
        for advance in (lambda: at.at_file("w"), lambda: at.at_step(1), lambda: at.at_layer(0)):
            advance()
            counts.append(at.n_done)
    counts.append(at.n_done)
    assert counts == sorted(set(counts))


def test_an_error_remembers_the_innermost_place() -> None:
    at = Whereabouts()
    with (
        pytest.raises(ValueError) as raised,
        at.during(Phase.STEP, "generate"),
        at.during(Phase.LOAD, "loading"),
    ):
        at.at_file("w.pth")
        raise ValueError
    assert at.describe() == "INIT (starting)", "a program that catches it is somewhere else by now"
    place = at.place(raised.value)
    assert (place["phase"], place["doing"], place["file"]) == ("LOAD", "loading", "w.pth")
    assert at.place(KeyError())["phase"] == "INIT"
