"""Figures as PNG files: MLflow shows them in its page, also on a network without the outside world."""

from pathlib import Path
from typing import Any

import numpy as np

from serving.preprocess import CLASSES
from training import metrics

DPI = 110


def _new(width_in: float, height_in: float) -> Any:
    """A figure on its own canvas: no window, and nothing of matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def confusion_matrix(labels: np.ndarray, said: np.ndarray, path: Path) -> None:
    """Rows: what it is; columns: what the network said. The costly field is blocked called free, top right."""
    counts = metrics.confusion(labels, said)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _new(4.2, 3.8)
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for row in range(2):
        for column in range(2):
            ink = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks([0, 1], CLASSES)
    axes.set_yticks([0, 1], CLASSES)
    axes.set_xlabel("said")
    axes.set_ylabel("is")
    axes.set_title("Test images")
    figure.savefig(path, dpi=DPI)


def roc_curve(labels: np.ndarray, p_blocked: np.ndarray, threshold: float, path: Path) -> None:
    """The ROC of `blocked` with the point of the threshold that the robot will use."""
    curve = metrics.roc(labels, p_blocked)
    said = metrics.decided(p_blocked, threshold)
    here = (1 - metrics.recall(labels, said, metrics.FREE), metrics.recall(labels, said, metrics.BLOCKED))
    figure = _new(4.4, 4.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(
        curve.false_positive_rate, curve.true_positive_rate, label=f"AUC {metrics.roc_auc(labels, p_blocked):.3f}"
    )
    axes.plot(*here, "o", label=f"threshold {threshold:.2f}")
    axes.set_xlabel("free called blocked")
    axes.set_ylabel("blocked called blocked")
    axes.set_title("Test images")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=DPI)


def calibration(labels: np.ndarray, p_blocked: np.ndarray, path: Path) -> None:
    """How often an image is blocked, by the probability that the network gave; honest ones lie on the diagonal."""
    bins = np.minimum((p_blocked * metrics.EQUAL_BINS).astype(int), metrics.EQUAL_BINS - 1)
    filled = [bins == index for index in np.unique(bins)]
    given = [float(np.mean(p_blocked[inside])) for inside in filled]
    found = [float(np.mean(labels[inside] == metrics.BLOCKED)) for inside in filled]
    figure = _new(4.4, 4.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(given, found, "o-", label=f"expected error {metrics.calibration_error(labels, p_blocked):.3f}")
    axes.set_xlabel("probability of blocked")
    axes.set_ylabel("share that is blocked")
    axes.set_title("Test images")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=DPI)
