"""Stage `evaluate`: how good the network is, how sure that is, and from which probability a robot turns.

    reads   params.yaml (evaluate, data.sessions), build/train/model.pt, history.csv and run.json,
            build/split/split.csv, the zips
    writes  build/evaluate/metrics.json    what `dvc metrics show` tells
            build/evaluate/decision.json   threshold and temperature, for the robot (contract `Decision`)
            build/evaluate/parts.csv, sources.csv, sessions.csv   all metrics with their 95 % intervals: of test and
                                           validation, and of the test images by source (person, place) and session
            build/evaluate/roc.csv, confusion.csv   for `dvc plots show`
            build/evaluate/plots/*.png     figures, for MLflow

Temperature and threshold are those of the stage `unseen`, chosen on sources that its networks had not seen; without
two real sources they are chosen on the validation part. The test part is only measured. Everything is logged to the
MLflow run that the stage `train` started.
"""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from pipelines import decision_file
from pipelines.images_table import write_text
from pipelines.params import DataParams, EvaluateParams, block
from serving.command_line import run
from serving.contracts.releases import Decision
from serving.errors import OperatorError, RejectedError
from serving.preprocess import CLASSES
from training import figures, intervals, metrics
from training.dataset import Images, Row, load, need_both_classes, read_split
from training.progress import track
from training.tracking import Run

MODEL_FILE = Path("build/train/model.pt")
HISTORY_FILE = Path("build/train/history.csv")
SPLIT_FILE = Path("build/split/split.csv")
UNSEEN = Path("build/unseen")
OUT = Path("build/evaluate")
_NO_PIXELS = np.empty(0, dtype=np.uint8)
FEWEST_TO_CALIBRATE = 30  # images; with fewer, the temperature would be fitted to chance
# Columns of metrics.json; the ends of the other intervals are in parts.csv, or `dvc metrics show` could not be read.
SHOWN = ("balanced_accuracy", "blocked_recall", "free_recall", "roc_auc", "calibration_error", "images")
SHOWN_OF_TEST = (*SHOWN, *(f"{name}_{end}" for name in SHOWN[:2] for end in ("low", "high")))

Line = dict[str, Any]


class Judged(NamedTuple):
    """One part with what the network said about it."""

    images: Images
    logits: np.ndarray  # (N, 2) float32

    def p_blocked(self, decision: Decision) -> np.ndarray:
        return metrics.probabilities(self.logits, decision.temperature)

    def measure(self, decision: Decision) -> dict[str, float]:
        """Metrics of this part with a robot's decision, and their intervals; see `intervals.summary`."""
        groups = [row.group for row in self.images.rows]
        found = intervals.summary(self.images.labels, self.p_blocked(decision), decision.blocked_threshold, groups)
        return {name: round(value, 6) for name, value in found.items()}

    def by(self, key: Callable[[Row], str]) -> dict[str, "Judged"]:
        """This part taken apart, such as by source; the pixels stay behind."""
        names = np.array([key(row) for row in self.images.rows])
        apart = {}
        for name in sorted(set(names)):
            chosen = np.flatnonzero(names == name)
            rows = [self.images.rows[index] for index in chosen]
            apart[str(name)] = Judged(Images(rows, _NO_PIXELS, self.images.labels[chosen]), self.logits[chosen])
        return apart


def decide(validation: Judged, min_blocked_recall: float) -> tuple[Decision, bool]:
    """Temperature and threshold from the validation part, and whether they reach the recall asked for."""
    labels = validation.images.labels
    enough = len(labels) >= FEWEST_TO_CALIBRATE
    temperature = metrics.best_temperature(labels, validation.logits) if enough else 1.0
    p_blocked = metrics.probabilities(validation.logits, temperature)
    threshold, reached = metrics.choose_threshold(labels, p_blocked, min_blocked_recall)
    return decision_file.make(threshold, temperature), reached


def lines_of(parts: dict[str, Judged], key: str, decision: Decision) -> list[Line]:
    """A line of metrics for each part; a class that it lacks counts in none of them, and what cannot be told is nan."""
    return [
        {key: name, **part.measure(decision)} for name, part in track(parts.items(), f"measuring by {key}", len(parts))
    ]


def write(test: Judged, validation: Judged, decision: Decision, out: Path) -> list[Line]:
    """Writes every output of the stage but the learning curves; returns the lines of parts.csv."""
    parts = lines_of({"test": test, "validation": validation}, "part", decision)
    sources = lines_of(test.by(lambda row: row.source), "source", decision)
    sessions = lines_of(test.by(lambda row: row.session), "session", decision)
    for name, lines in (("parts", parts), ("sources", sources), ("sessions", sessions)):
        write_text(out / f"{name}.csv", _table(lines))
    shown = {"test": _known(parts[0], SHOWN_OF_TEST), "validation": _known(parts[1], SHOWN)}
    write_text(out / "metrics.json", json.dumps(shown, indent=2) + "\n")
    decision_file.write(decision, out)

    labels, p_blocked = test.images.labels, test.p_blocked(decision)
    curve = metrics.roc(labels, p_blocked)
    points = zip(curve.false_positive_rate, curve.true_positive_rate, np.minimum(curve.threshold, 1.0), strict=True)
    write_text(out / "roc.csv", _table([{"fpr": x, "tpr": y, "threshold": t} for x, y, t in points]))
    pairs = zip(labels, metrics.decided(p_blocked, decision.blocked_threshold), strict=True)
    write_text(out / "confusion.csv", _table([{"actual": CLASSES[a], "predicted": CLASSES[b]} for a, b in pairs]))
    names = [row.image for row in test.images.rows]
    answers = figures.Answers(names, test.images.pixels, labels, p_blocked, decision.blocked_threshold)
    figures.draw_all(answers, sources, sessions, out / "plots")
    return parts


def draw_history(path: Path, to: Path) -> None:
    """The learning curves of the training, out of its history.csv.

    Raises:
        OperatorError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        history = {name: [float(line[name]) for line in lines] for name in lines[0]}
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro --force train`") from None
    figures.learning_curves(history, to)


def _known(line: Line, names: tuple[str, ...]) -> dict[str, float]:
    return {name: line[name] for name in names if math.isfinite(line[name])}


def _table(rows: list[Line]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def _log(tracked: Run, parts: list[Line], decision: Decision, out: Path) -> None:
    test, validation = parts
    tracked.metrics({f"test/{name}": value for name, value in test.items() if name != "part"})
    tracked.metrics({f"validation/{name}": validation[name] for name in SHOWN})
    tracked.metrics({f"decision/{name}": value for name, value in msgspec.to_builtins(decision).items()})
    tracked.artifact(out / "plots", "plots")
    for name in ("metrics.json", "decision.json", "parts.csv", "sources.csv", "sessions.csv"):
        tracked.artifact(out / name, "evaluate")


def judge(network: Any, rows: list[Row], sessions: Path, what: str) -> Judged:
    """Reads the images of a part and asks a `training.model.Network` about them.

    Raises:
        OperatorError: a session cannot be read.
        RejectedError: a class is missing, an image is broken, or a logit is no number.
    """
    from training.inference import infer

    need_both_classes(rows, what, at_least=1)
    images = load(rows, sessions, f"reading {what} images")
    logits = infer(network, images.pixels, f"judging {what} images")
    lost = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(lost):
        raise RejectedError(
            f"the network gives no numbers for {len(lost)} of {len(rows)} {what} images, such as "
            f"{rows[lost[0]].image}; train it again (`dvc repro --force train`) with a lower train.learning_rate"
        )
    return Judged(images, logits)


@click.command()
def command() -> None:
    """Stage `evaluate`: measure the trained network on the test part, choose the robot's threshold on validation.

    \b
    Examples:
      dvc repro evaluate
      dvc metrics show
      dvc plots show
    """
    from training.machine import one_thread_per_operation
    from training.model import restore

    one_thread_per_operation()
    params, sessions = block(EvaluateParams), Path(block(DataParams).sessions)
    parts = read_split(SPLIT_FILE)
    with Run.resume() as tracked:
        network = restore(MODEL_FILE)
        validation = judge(network, parts["validation"], sessions, "validation")
        test = judge(network, parts["test"], sessions, "test")
        if (UNSEEN / decision_file.NAME).exists():
            decision, reached = decision_file.read(UNSEEN), True  # that stage has told whether it is reached
        else:
            decision, reached = decide(validation, params.min_blocked_recall)
        measured = write(test, validation, decision, OUT)
        draw_history(HISTORY_FILE, OUT / "plots/curves.png")
        _log(tracked, measured, decision, OUT)
    if not reached:
        click.echo(
            f"warning: no threshold reaches a blocked recall of {params.min_blocked_recall} on the validation part; "
            f"the nearest is taken ({measured[1]['blocked_recall']:.3f})",
            err=True,
        )
    for line in measured:
        click.echo(_told(line))
    click.echo(how_unseen(parts))


def _told(line: Line) -> str:
    def sure(name: str) -> str:
        low, high = line[f"{name}_low"], line[f"{name}_high"]
        return f"{line[name]:.3f} ({low:.3f} to {high:.3f})" if math.isfinite(low) else f"{line[name]:.3f}"

    return (
        f"{line['part']}: {line['images']} images in {line['groups']} views, balanced accuracy "
        f"{sure('balanced_accuracy')}, blocked recall {sure('blocked_recall')}, AUC {sure('roc_auc')}"
    )


def how_unseen(parts: dict[str, list[Row]]) -> str:
    """What the test part can tell: its sources may be those that training has seen."""
    seen = {row.source for row in parts["train"]}
    unseen = sorted({row.source for row in parts["test"]} - seen)
    if unseen:
        return f"of the test part's sources, training has not seen {', '.join(unseen)}"
    return "training has seen every source of the test part: this tells nothing about another place or person"


if __name__ == "__main__":
    run(command)
