"""A result goes to JSON and back, is judged, and becomes a report, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama.bench.bars import Bar, all_bars, judge
from llama.bench.report import BEGIN, END, markdown, put_between_markers
from llama.bench.result import Result
from llama.cli import main
from llama.errors import CheckpointError, OutputError, UsageError
from tests.helpers.bench_result import CPP, N_CORES, OURS, STAGES, stored_result

BARS = all_bars(N_CORES)


@pytest.mark.parametrize(
    ("against", "bar", "ratio", "is_met"),
    [("limit", 0.9, 0.9, True), ("limit", 0.95, 0.9, False), (CPP, 0.7, 0.75, True)],
)
def test_a_bar_is_a_ratio_of_medians(
    against: object, bar: float, ratio: float, is_met: bool
) -> None:
    row = Bar("x", "1b", "float32", "decode-1", OURS, against, bar)  # type: ignore[arg-type]
    verdict = judge(row, stored_result().figures)
    assert verdict.ratio == pytest.approx(ratio)
    assert verdict.is_met is is_met


def test_a_bar_may_be_an_upper_one() -> None:
    row = Bar("x", "110m", "overhead", "decode-1 overhead", OURS, None, 0.1, is_most=True)
    assert judge(row, stored_result().figures).is_met is True


@pytest.mark.parametrize("shape", ["110m", "1b"])
def test_what_was_not_measured_is_neither_met_nor_missed(shape: str) -> None:
    row = Bar("x", shape, "float32", "decode-1", STAGES, CPP, 1.0)
    assert judge(row, stored_result().figures).is_met is None


def test_json_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    stored_result().save(path, bars=BARS)
    found = Result.load(path)
    assert markdown(found, BARS) == markdown(stored_result(), BARS)
    values = json.loads(path.read_text())
    figure = next(f for f in values["figures"] if f["metric"] == "decode-1")
    assert (figure["median"], figure["least"], figure["most"]) == (9.0, 8.0, 11.0)
    assert figure["share_of_limit"] == 0.9
    assert [bar["met"] for bar in values["bars"]].count(None) < len(values["bars"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "bars": []}', "\0"]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is (no|a) result"):
        Result.load(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        Result.load(tmp_path / "none.json")


def test_a_result_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        stored_result().save(tmp_path / "file" / "result.json", bars=BARS)


def test_the_report_has_every_share_and_every_verdict() -> None:
    text = markdown(stored_result(), BARS)
    assert "| decode-1 | llama float32, 1 × 2 threads | 9.0 | 8.0 | 11.0 | 90% | 0.250 |" in text
    assert "| 1.1 B float32 decode-1, one process, against memory | 0.90 | ≥ 0.93 | no |" in text
    assert "| 1.1 B float32 decode-1, one process, against llama.cpp | 0.75 | ≥ 0.95 | no |" in text
    assert "forward pass, one process | 0.09 | ≤ 0.1 | yes |" in text
    assert "- transformers not measured: pip install transformers" in text
    assert "before 1 of 1 rounds other programs used up to 50% of the cores" in text
    assert "bars need cases that this run left out" in text


def test_the_command_reports_on_a_stored_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_result().save(tmp_path / "result.json", bars=BARS)
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{BEGIN}\nold\n{END}\nrest\n")
    words = ["--result", str(tmp_path / "result.json"), "--report", str(page)]
    assert main(["bench", *words]) == 0
    printed = capsys.readouterr().out
    assert printed == markdown(stored_result(), BARS)
    assert page.read_text() == f"# Title\n{BEGIN}\n{printed}{END}\nrest\n"


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("# Title\n", f"{END}\n{BEGIN}\nrest\n"):
        page.write_text(text)
        with pytest.raises(UsageError, match="needs the lines"):
            put_between_markers(page, "x")
        assert page.read_text() == text
    with pytest.raises(OutputError, match="cannot write"):
        put_between_markers(tmp_path / "none.md", "x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from llama.bench.plots import draw

    made = draw(stored_result(), tmp_path)
    assert [path.stem for path in made] == [
        "bench-tokens-per-second",
        "bench-share-of-limit",
        "bench-scaling",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
