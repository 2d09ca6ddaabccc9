"""What the README shows in Python runs as it stands there, from the root of a checkout."""

from __future__ import annotations

import re

import pytest

from tests.helpers.programs import ROOT, run

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["meta", "llm"])
def test_python_blocks_run(block: str) -> None:
    done = run(["-c", block])
    assert done.returncode == 0, done.stderr
    assert "Pim." in done.stdout
