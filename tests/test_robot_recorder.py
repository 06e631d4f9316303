"""The flight recorder's files."""

import csv
import logging
from pathlib import Path

import pytest

from serving.recorder import HEADER, Line, Recorder, previous
from tests.conftest import wait_for


def line(number: int) -> Line:
    return Line(1_700_000_000.5 + number, number, "ab" * 32, 0.25, "forward", 12.5, 3.25, 0.4, 0.4)


def numbers(path: Path) -> "list[int]":
    with path.open(newline="") as file:
        return [int(row["sequence"]) for row in csv.DictReader(file)]


def test_lines_come_out_as_they_went_in(tmp_path: Path) -> None:
    """One header, one line a decision, in order; a second start goes on in the same file."""
    path = tmp_path / "sub" / "decisions.csv"
    for start in (1, 4):
        recorder = Recorder(path, 10_000)
        for number in range(start, start + 3):
            recorder.record(line(number))
        recorder.close()
    text = path.read_text()
    assert text.count(HEADER) == 1
    assert text.splitlines()[1] == "1700000001.5000,1,abababab,0.2500,forward,12.50,3.250,0.40,0.40"
    assert numbers(path) == [1, 2, 3, 4, 5, 6]


def test_the_files_stay_within_their_bound(tmp_path: Path) -> None:
    """Old lines go, the newest stay, and both files can be read by themselves."""
    path = tmp_path / "decisions.csv"
    for start in range(0, 400, 20):
        recorder = Recorder(path, 8_000)
        for number in range(start, start + 20):
            recorder.record(line(number))
        recorder.close()
    assert path.stat().st_size + previous(path).stat().st_size <= 8_000
    kept = numbers(previous(path)) + numbers(path)
    assert kept == list(range(kept[0], 400))
    assert len(kept) > 20


def test_a_disk_that_refuses_costs_lines_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Recording never raises; when the disk takes lines again they are written."""
    path = tmp_path / "decisions.csv"
    path.mkdir()
    with caplog.at_level(logging.ERROR):
        recorder = Recorder(path, 10_000)
        recorder.record(line(1))
        wait_for(lambda: "decisions are not recorded" in caplog.text, 5.0, "the complaint")
        path.rmdir()
        recorder.record(line(2))
        recorder.close()
    assert numbers(path) == [2]
