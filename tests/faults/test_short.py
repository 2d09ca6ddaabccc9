"""The scoreboard's quickest cases, once each. Its time limits are deadlines here, no figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.case import Case, Outcome
from tests.faults.cases import deaths
from tests.faults.run import run_case
from tests.faults.scene import Scene

pytestmark = pytest.mark.slow


def kill_one(scene: Scene) -> list[Outcome]:
    return [deaths.kill_in_decode_once(scene, 1, n_ranks=2)]


def kill_launcher(scene: Scene) -> list[Outcome]:
    return [deaths.kill_launcher_once(scene, "decode", "token 20$")]


@pytest.mark.parametrize(
    "run", [kill_one, deaths.raise_in_layer, deaths.leave_early, kill_launcher]
)
def test_the_case_passes_and_leaves_nothing(run: Callable[[Scene], list[Outcome]]) -> None:
    result = run_case(Case("P00", "once", "as on the scoreboard", run), repeat=1, slack=20)
    assert not result.errors, result.errors[0]
