"""Stage `evaluate`: how good the network is on rooms it has not seen, and from which probability a robot turns.

    reads   params.yaml (evaluate, data.sessions), build/train/model.pt and run.json, build/split/split.csv, the zips
    writes  build/evaluate/metrics.json    what `dvc metrics show` tells
            build/evaluate/decision.json   threshold and temperature, for the robot (contract `Decision`)
            build/evaluate/roc.csv, confusion.csv   for `dvc plots show`
            build/evaluate/sources.csv     the test images by their source: person or place
            build/evaluate/plots/*.png     the same as figures, for MLflow

Temperature and threshold are chosen on the validation part alone; the test part is only measured. Everything is
logged to the MLflow run that the stage `train` started.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from pipelines.images_table import write_text
from pipelines.params import DataParams, EvaluateParams, block
from serving.command_line import run
from serving.contracts.releases import Decision
from serving.preprocess import CLASSES
from training import metrics
from training.dataset import Images, Row, load, need_both_classes, read_split
from training.tracking import Run

MODEL_FILE = Path("build/train/model.pt")
SPLIT_FILE = Path("build/split/split.csv")
OUT = Path("build/evaluate")
FEWEST_TO_CALIBRATE = 30  # images; with fewer, the temperature would be fitted to chance


class Judged(NamedTuple):
    """One part with what the network said about it."""

    images: Images
    logits: np.ndarray  # (N, 2) float32

    def measure(self, decision: Decision) -> dict[str, float]:
        """Metrics of this part with a robot's decision."""
        labels, p_blocked = self.images.labels, self.p_blocked(decision)
        said = metrics.decided(p_blocked, decision.blocked_threshold)
        found = {
            "balanced_accuracy": metrics.balanced_accuracy(labels, said),
            "blocked_recall": metrics.recall(labels, said, metrics.BLOCKED),
            "free_recall": metrics.recall(labels, said, metrics.FREE),
            "roc_auc": metrics.roc_auc(labels, p_blocked),
            "calibration_error": metrics.calibration_error(labels, p_blocked),
        }
        return {**{name: round(value, 6) for name, value in found.items()}, "images": len(labels)}

    def p_blocked(self, decision: Decision) -> np.ndarray:
        return metrics.probabilities(self.logits, decision.temperature)


def decide(validation: Judged, min_blocked_recall: float) -> tuple[Decision, bool]:
    """Temperature and threshold from the validation part, and whether they reach the recall asked for."""
    labels = validation.images.labels
    enough = len(labels) >= FEWEST_TO_CALIBRATE
    temperature = metrics.best_temperature(labels, validation.logits) if enough else 1.0
    p_blocked = metrics.probabilities(validation.logits, temperature)
    threshold, reached = metrics.choose_threshold(labels, p_blocked, min_blocked_recall)
    return Decision(blocked_threshold=round(threshold, 6), temperature=round(temperature, 6)), reached


def by_source(test: Judged, decision: Decision) -> list[dict[str, object]]:
    """Metrics of the test images of each source; a class that a source lacks counts in none of them."""
    sources = np.array([row.source for row in test.images.rows])
    table: list[dict[str, object]] = []
    for source in sorted(set(sources)):
        chosen = sources == source
        labels = test.images.labels[chosen]
        said = metrics.decided(test.p_blocked(decision)[chosen], decision.blocked_threshold)
        table.append(
            {
                "source": source,
                "images": int(chosen.sum()),
                "balanced_accuracy": round(metrics.balanced_accuracy(labels, said), 4),
                "blocked_recall": round(metrics.recall(labels, said, metrics.BLOCKED), 4),
            }
        )
    return table


def write(test: Judged, validation: Judged, decision: Decision, out: Path) -> dict[str, dict[str, float]]:
    """Writes every output of the stage and returns the metrics by part."""
    measured = {"test": test.measure(decision), "validation": validation.measure(decision)}
    labels, p_blocked = test.images.labels, test.p_blocked(decision)
    said = metrics.decided(p_blocked, decision.blocked_threshold)
    write_text(out / "metrics.json", json.dumps(measured, indent=2) + "\n")
    write_text(out / "decision.json", json.dumps(msgspec.to_builtins(decision), indent=2) + "\n")
    write_text(out / "sources.csv", _table(by_source(test, decision)))
    curve = metrics.roc(labels, p_blocked)
    points = zip(curve.false_positive_rate, curve.true_positive_rate, np.minimum(curve.threshold, 1.0), strict=True)
    write_text(out / "roc.csv", _table([{"fpr": x, "tpr": y, "threshold": t} for x, y, t in points]))
    pairs = zip(labels, said, strict=True)
    write_text(out / "confusion.csv", _table([{"actual": CLASSES[a], "predicted": CLASSES[b]} for a, b in pairs]))
    _draw(labels, p_blocked, decision, out / "plots")
    return measured


def _draw(labels: np.ndarray, p_blocked: np.ndarray, decision: Decision, folder: Path) -> None:
    from training import figures

    folder.mkdir(parents=True, exist_ok=True)
    said = metrics.decided(p_blocked, decision.blocked_threshold)
    figures.confusion_matrix(labels, said, folder / "confusion.png")
    figures.roc_curve(labels, p_blocked, decision.blocked_threshold, folder / "roc.png")
    figures.calibration(labels, p_blocked, folder / "calibration.png")


def _table(rows: list[dict[str, object]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def _log(tracked: Run, measured: dict[str, dict[str, float]], decision: Decision, out: Path) -> None:
    tracked.metrics({f"{part}/{name}": value for part, found in measured.items() for name, value in found.items()})
    tracked.metrics({f"decision/{name}": value for name, value in msgspec.to_builtins(decision).items()})
    tracked.artifact(out / "plots", "plots")
    for name in ("metrics.json", "decision.json", "sources.csv"):
        tracked.artifact(out / name, "evaluate")


def judge(network: Any, rows: list[Row], sessions: Path, what: str) -> Judged:
    """Reads the images of a part and asks a `training.model.Network` about them."""
    from training.fit import infer

    need_both_classes(rows, what, at_least=1)
    images = load(rows, sessions, f"reading {what} images")
    return Judged(images, infer(network, images.pixels, f"judging {what} images"))


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
        decision, reached = decide(validation, params.min_blocked_recall)
        measured = write(test, validation, decision, OUT)
        _log(tracked, measured, decision, OUT)
    if not reached:
        click.echo(
            f"warning: no threshold reaches a blocked recall of {params.min_blocked_recall} on the validation part; "
            f"the nearest is taken ({measured['validation']['blocked_recall']:.3f})",
            err=True,
        )
    for part, found in measured.items():
        click.echo(
            f"{part}: {found['images']} images, balanced accuracy {found['balanced_accuracy']:.3f}, "
            f"blocked recall {found['blocked_recall']:.3f}, AUC {found['roc_auc']:.3f}"
        )


if __name__ == "__main__":
    run(command)
