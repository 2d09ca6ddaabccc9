"""The file that is left behind, and what may stand in its way."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from llama.parallel.liveness.postmortem import FILE_NAME, Postmortem
from tests.parallel.liveness.test_beat import BEAT
from tests.parallel.liveness.test_failure import KILLED


def test_it_says_what_failed_and_where_everybody_was(tmp_path: Path) -> None:
    Postmortem(tmp_path, lambda: [BEAT]).write(KILLED)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert content["first_failure"] == asdict(KILLED)
    assert content["beats"] == [asdict(BEAT)]
    assert set(content) == {"first_failure", "beats", "versions", "time"}
    assert list(tmp_path.iterdir()) == [tmp_path / FILE_NAME]


def test_the_first_rank_of_a_host_writes_it(tmp_path: Path) -> None:
    ranks = [Postmortem(tmp_path, list) for _ in range(2)]
    ranks[0].write(KILLED)
    ranks[1].write(replace(KILLED, rank=9))
    assert json.loads((tmp_path / FILE_NAME).read_text())["first_failure"]["rank"] == KILLED.rank


def test_an_earlier_jobs_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("old")
    os.utime(tmp_path / FILE_NAME, (0, 0))
    Postmortem(tmp_path, list).write(KILLED)
    assert json.loads((tmp_path / FILE_NAME).read_text())["first_failure"] == asdict(KILLED)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    Postmortem(tmp_path / "absent", list).write(KILLED)
    (tmp_path / "file").touch()
    Postmortem(tmp_path / "file", list).write(KILLED)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
