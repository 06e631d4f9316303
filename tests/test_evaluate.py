"""From logits to metrics, decision and tables; the command itself is run in test_training_stages.py."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dvc")

from pipelines.evaluate import Judged, decide, draw_history, how_unseen, judge, lines_of, write
from serving.contracts.releases import Decision
from serving.errors import OperatorError, RejectedError
from training.dataset import Images, Row


def judged(labels: list[int], margins: list[float], source: str = "me") -> Judged:
    """Images with the logits (margin, 0): a positive margin says blocked."""
    names = ["free" if label else "blocked" for label in labels]
    rows = [Row(f"s/{name}/{index}.jpg", name, "s", source, str(index), "test") for index, name in enumerate(names)]
    pixels = np.zeros((len(labels), 224, 224, 3), dtype=np.uint8)
    logits = np.stack([np.array(margins), np.zeros(len(margins))], axis=1).astype(np.float32)
    return Judged(Images(rows, pixels, np.array(labels)), logits)


def test_the_threshold_is_chosen_on_validation_and_only_measured_on_test() -> None:
    """A threshold that suits validation may miss on test, and the metrics say so."""
    decision, reached = decide(judged([0, 0, 1, 1], [3, 2, -2, -3]), 0.9)
    assert reached
    assert decision == Decision(blocked_threshold=0.5, temperature=1.0)
    measured = judged([0, 0, 1, 1], [3, -1, -2, -3]).measure(decision)
    assert measured["blocked_recall"] == 0.5
    assert measured["free_recall"] == 1.0
    assert measured["balanced_accuracy"] == 0.75
    assert measured["roc_auc"] == 1.0
    assert measured["images"] == 4


def test_a_recall_that_cannot_be_reached_is_told() -> None:
    """The nearest threshold is taken, and the flag says that it is not enough."""
    decision, reached = decide(judged([0, 0, 1, 1], [3, -9, -2, -3]), 0.9)
    assert not reached
    assert 0 < decision.blocked_threshold < 1


def test_enough_images_are_calibrated() -> None:
    """Forty images get a temperature; a network that is too sure gets one above 1."""
    labels = [0] * 20 + [1] * 20
    margins = [8.0] * 15 + [-8.0] * 5 + [-8.0] * 15 + [8.0] * 5
    decision, _ = decide(judged(labels, margins), 0.5)
    assert decision.temperature > 3


def test_sources_are_measured_apart() -> None:
    """The mean must not hide that one room fails; a class that a room lacks is not a number there."""
    rooms = {
        "good room": judged([0, 1], [2, -2], "good room"),
        "bad room": judged([0, 1], [-2, -2], "bad room"),
        "open room": judged([1], [-2], "open room"),
    }
    rows = [row for room in rooms.values() for row in room.images.rows]
    labels = np.concatenate([room.images.labels for room in rooms.values()])
    logits = np.concatenate([room.logits for room in rooms.values()])
    apart = Judged(Images(rows, None, labels), logits).by(lambda row: row.source)
    assert list(apart) == sorted(rooms)
    table = {line["source"]: line for line in lines_of(apart, "source", Decision())}
    assert table["good room"]["balanced_accuracy"] == 1.0
    assert table["bad room"]["blocked_recall"] == 0.0
    assert np.isnan(table["open room"]["blocked_recall"])
    assert table["open room"]["balanced_accuracy"] == 1.0


FIGURES = ["by_session", "by_source", "calibration", "confusion", "mistakes"]
FIGURES += ["precision_recall", "probabilities", "roc"]


@pytest.mark.parametrize(
    ("labels", "margins"),
    [([0, 0, 1, 1], [3, -1, -2, -3]), ([0, 1, 1], [9, -9, -9]), ([0, 1], [-400, 400]), ([0, 1] * 30, [0.0] * 60)],
    ids=["one mistake", "three images, none wrong", "all wrong, and sure of it", "the same answer for all"],
)
def test_every_output_is_written(labels: list[int], margins: list[float], tmp_path: Path) -> None:
    """Tables for DVC, figures for MLflow, the decision for the robot, whatever the network said."""
    part = judged(labels, margins)
    parts = write(part, part, Decision(), tmp_path)
    assert [line["part"] for line in parts] == ["test", "validation"]
    shown = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert shown["test"]["balanced_accuracy"] == parts[0]["balanced_accuracy"]
    assert shown["test"]["images"] == len(labels)
    actual = [line["actual"] for line in csv.DictReader((tmp_path / "confusion.csv").open())]
    assert actual == ["free" if label else "blocked" for label in labels]
    assert all(float(line["threshold"]) <= 1 for line in csv.DictReader((tmp_path / "roc.csv").open()))
    (source,) = csv.DictReader((tmp_path / "sources.csv").open())
    assert (source["source"], int(source["groups"])) == ("me", len(labels))
    assert next(csv.DictReader((tmp_path / "sessions.csv").open()))["session"] == "s"
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "plots").iterdir())


def test_what_dvc_shows_fits_a_terminal(tmp_path: Path) -> None:
    """Ten figures of the test part, six of validation; the other ends of intervals are in parts.csv."""
    part = judged([0, 0, 1, 1], [3, -1, 0, -3])
    write(part, part, Decision(), tmp_path)
    shown = json.loads((tmp_path / "metrics.json").read_text())
    assert len(shown["test"]) == 10
    assert len(shown["validation"]) == 6
    (test, _) = csv.DictReader((tmp_path / "parts.csv").open())
    assert float(test["roc_auc_low"]) <= float(test["roc_auc"]) <= float(test["roc_auc_high"])


class Silent:
    """A network that gives no numbers from the second image on."""

    logits = np.array([[1, 0], [np.nan, 0], [0, np.inf]], dtype=np.float32)


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a blocked recall that NaN, being smaller than no threshold, would make up."""
    part = judged([0, 1, 1], [1, -1, -1])
    monkeypatch.setattr("pipelines.evaluate.load", lambda *_: part.images)
    monkeypatch.setattr("training.inference.infer", lambda *_: Silent.logits)
    with pytest.raises(RejectedError, match=r"no numbers for 2 of 3 test images, such as s/free/1.jpg; train it again"):
        judge(Silent, part.images.rows, tmp_path, "test")


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    """Nothing can be said of a network from images of one class; what is missing is named."""
    rows = judged([1, 1, 1], [0, 0, 0]).images.rows
    with pytest.raises(RejectedError, match="the test part has 0 images of `blocked`"):
        judge(Silent, rows, tmp_path, "test")


def test_it_is_told_whether_the_test_part_has_an_unseen_source() -> None:
    """A figure of places that training has seen is no promise for others."""
    ours, theirs = judged([0, 1], [1, -1], "ours").images.rows, judged([0, 1], [1, -1], "theirs").images.rows
    assert "nothing about another place" in how_unseen({"train": ours + theirs, "test": ours})
    assert how_unseen({"train": ours, "test": ours + theirs}).endswith("has not seen theirs")


def test_learning_curves_are_drawn_from_the_history(tmp_path: Path) -> None:
    """Also of one epoch; a broken file is told."""
    history = tmp_path / "history.csv"
    history.write_text("epoch,train_loss,validation_loss,validation_balanced_accuracy\n1,0.5,0.6,0.7\n")
    draw_history(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for content in ("", "epoch\n", "epoch,train_loss\none,two\n", "epoch,train_loss\n1\n"):
        history.write_text(content)
        with pytest.raises(OperatorError, match="dvc repro --force train"):
            draw_history(history, tmp_path / "curves.png")
