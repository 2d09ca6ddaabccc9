from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama.checkpoint.writers.output_folder import output_folder
from llama.checkpoint.writers.replaceable import is_replaceable
from llama.errors import OutputError, UsageError


def fill(place: Path, text: str = "new", *, overwrite: bool = False) -> None:
    replaceable = is_replaceable if overwrite else None
    with output_folder(place, need_bytes=10, is_replaceable=replaceable) as folder:
        assert not (place / "x.json").exists() or overwrite
        (folder / "inner").mkdir()
        (folder / "inner" / "x.json").write_text(text)


def checkpoint(place: Path) -> Path:
    place.mkdir()
    (place / "params.json").write_text("{}")
    (place / "consolidated.00.pth").write_bytes(b"")
    return place


def test_it_appears_finished(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    fill(place)
    assert (place / "inner" / "x.json").read_text() == "new"
    assert os.listdir(place.parent) == ["place"]
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    fill(tmp_path / "link")
    assert (tmp_path / "place" / "inner").is_dir()
    assert (tmp_path / "link").is_symlink()


def test_what_is_there_stays_unless_it_may_go(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "place")
    with pytest.raises(UsageError, match="is not empty; give another folder, or --overwrite"):
        fill(place)
    fill(place, overwrite=True)
    assert os.listdir(place) == ["inner"]
    assert os.listdir(tmp_path) == ["place"]


@pytest.mark.parametrize("name", ["notes.odt", ".bashrc", "sub/thesis.tex"])
def test_a_folder_that_holds_more_than_a_checkpoint_is_not_overwritten(
    tmp_path: Path, name: str
) -> None:
    place = checkpoint(tmp_path / "place")
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("years of work")
    with pytest.raises(UsageError, match="is not overwritten; remove it first"):
        fill(place, overwrite=True)
    assert (place / name).exists()


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "place")
    with (
        pytest.raises(ZeroDivisionError),
        output_folder(place, need_bytes=0, is_replaceable=is_replaceable) as folder,
    ):
        (folder / "x.json").write_text("half")
        raise ZeroDivisionError
    assert sorted(os.listdir(place)) == ["consolidated.00.pth", "params.json"]
    assert os.listdir(tmp_path) == ["place"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".place.partial-abc").mkdir()
    (tmp_path / ".place.partial-abc" / "consolidated.00.pth").write_bytes(b"half")
    (tmp_path / ".other.partial-abc").mkdir()
    (tmp_path / ".place.partial-file").write_text("a file is nobody's folder")
    fill(tmp_path / "place")
    left = sorted(os.listdir(tmp_path))
    assert left == [".other.partial-abc", ".place.partial-file", "place"]


def test_what_was_being_replaced_is_kept_while_nothing_has_its_place(tmp_path: Path) -> None:
    old = checkpoint(tmp_path / ".place.replaced-abc")
    fill(tmp_path / "place")
    assert old.exists()
    fill(tmp_path / "place2")
    (tmp_path / "place" / "inner" / "x.json").unlink()
    (tmp_path / "place" / "inner").rmdir()
    fill(tmp_path / "place")
    assert sorted(os.listdir(tmp_path)) == ["place", "place2"]


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    with output_folder(tmp_path / "place", need_bytes=0) as first:
        (first / "x.json").write_text("first")
        fill(tmp_path / "place", "second")
        assert first.exists()
        (tmp_path / "place" / "inner" / "x.json").unlink()
        (tmp_path / "place" / "inner").rmdir()
    assert (tmp_path / "place" / "x.json").read_text() == "first"


def test_no_room_is_told_with_both_numbers(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"has [\d,]+ bytes free, but 1,152,.* are needed"),
        output_folder(tmp_path / "place", need_bytes=2**60),
    ):
        raise AssertionError("must not begin")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["file", "file/place"])
def test_a_file_in_the_way_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, OutputError), match=r"is a file|Not a directory|exists"):
        fill(tmp_path / place)


def test_where_nobody_may_write(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write /proc/"):
        fill(Path("/proc/no_such_place/x"))
