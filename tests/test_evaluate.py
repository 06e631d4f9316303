"""From logits to metrics, decision and tables; the command itself is run in test_training_stages.py."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dvc")

from pipelines.evaluate import Judged, by_source, decide, write
from serving.contracts.releases import Decision
from training.dataset import Images, Row


def judged(labels: list[int], margins: list[float], source: str = "me") -> Judged:
    """Images with the logits (margin, 0): a positive margin says blocked."""
    names = ["free" if label else "blocked" for label in labels]
    rows = [Row(f"s/{index}", name, "s", source, "0", "test") for index, name in enumerate(names)]
    pixels = np.zeros((len(labels), 0), dtype=np.uint8)
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
    """The mean must not hide that one room fails."""
    good, bad = judged([0, 1], [2, -2], "good room"), judged([0, 1], [-2, -2], "bad room")
    pixels, labels = np.zeros((4, 0), dtype=np.uint8), np.array([0, 1, 0, 1])
    both = Judged(Images(good.images.rows + bad.images.rows, pixels, labels), np.concatenate([good.logits, bad.logits]))
    table = {str(line["source"]): line for line in by_source(both, Decision())}
    assert table["good room"]["balanced_accuracy"] == 1.0
    assert table["bad room"]["blocked_recall"] == 0.0


def test_every_output_is_written(tmp_path: Path) -> None:
    """Tables for DVC, figures for MLflow, the decision for the robot."""
    part = judged([0, 0, 1, 1], [3, -1, -2, -3])
    measured = write(part, part, Decision(), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == measured
    pairs = [(line["actual"], line["predicted"]) for line in csv.DictReader((tmp_path / "confusion.csv").open())]
    assert pairs == [("blocked", "blocked"), ("blocked", "free"), ("free", "free"), ("free", "free")]
    assert all(float(line["threshold"]) <= 1 for line in csv.DictReader((tmp_path / "roc.csv").open()))
    for name in ("confusion", "roc", "calibration"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
