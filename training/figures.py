"""Figures as PNG files: MLflow shows them in its page, also on a network without the outside world.

`draw_all` draws those of an evaluation; each figure is a function of its own. Orange is blocked and blue is free in all
of them (Okabe and Ito's colours, which colour-blind eyes tell apart too).
"""

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

import numpy as np

from serving.preprocess import CLASSES
from training import metrics

DPI = 120
INK = {metrics.BLOCKED: "#D55E00", metrics.FREE: "#0072B2"}
GREY = "0.65"
MOST_ROWS = 25  # of a chart by source or session: more could not be read
MOST_MISTAKES = 20


class Answers(NamedTuple):
    """Images with what was said about them."""

    names: Sequence[str]  # (N,) <session>/<label folder>/<file>
    pixels: Any  # (N, 224, 224, 3) uint8, RGB: an array or a pack, of which few are read
    labels: np.ndarray  # (N,)
    p_blocked: np.ndarray  # (N,)
    threshold: float


def draw_all(
    test: Answers, sources: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]], to: Path
) -> None:
    """Every figure of a test part, into the folder `to`.

    Args:
        test: both classes must be there.
        sources: what `by_source` asks for, one line a source.
        sessions: the same, one a session.
        to: made if it is not there.
    """
    to.mkdir(parents=True, exist_ok=True)
    labels, p_blocked, threshold = test.labels, test.p_blocked, test.threshold
    confusion_matrix(labels, metrics.decided(p_blocked, threshold), to / "confusion.png")
    roc_curve(labels, p_blocked, threshold, to / "roc.png")
    precision_recall(labels, p_blocked, threshold, to / "precision_recall.png")
    calibration(labels, p_blocked, to / "calibration.png")
    probabilities(labels, p_blocked, threshold, to / "probabilities.png")
    mistakes(test, to / "mistakes.png")
    by_source(sources, to / "by_source.png")
    by_source(sessions, to / "by_session.png", key="session")


def _new(width_in: float, height_in: float) -> Any:
    """A figure on its own canvas: no window, and nothing of matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width_in, height_in), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Any, title: str, x: str = "", y: str = "") -> Any:
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def confusion_matrix(labels: np.ndarray, said: np.ndarray, path: Path) -> None:
    """Rows: what it is; columns: what the network said. The costly field is blocked called free, top right."""
    counts = metrics.confusion(labels, said)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _new(4.4, 4.0)
    axes = _axes(figure, f"Confusion, {len(labels)} images", "said", "is")
    axes.imshow(shares, vmin=0, vmax=2, cmap="Greys")  # half of the scale: numbers stay readable on it
    for row in range(2):
        for column in range(2):
            text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", fontsize=14)
    axes.set_xticks([0, 1], CLASSES)
    axes.set_yticks([0, 1], CLASSES, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=DPI)


def roc_curve(labels: np.ndarray, p_blocked: np.ndarray, threshold: float, path: Path) -> None:
    """The ROC of `blocked` with the point of the threshold that the robot will use."""
    curve = metrics.roc(labels, p_blocked)
    said = metrics.decided(p_blocked, threshold)
    here = (1 - metrics.recall(labels, said, metrics.FREE), metrics.recall(labels, said, metrics.BLOCKED))
    figure = _new(4.8, 4.2)
    axes = _axes(figure, "ROC", "share of free called blocked", "share of blocked called blocked")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    area = metrics.roc_auc(labels, p_blocked)
    axes.plot(
        curve.false_positive_rate,
        curve.true_positive_rate,
        color=INK[metrics.BLOCKED],
        label=f"this network, area {area:.3f}",
    )
    axes.plot(*here, "o", color="black", label=f"threshold {threshold:.2f}", clip_on=False, zorder=3)
    _square(axes)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=DPI)


def precision_recall(labels: np.ndarray, p_blocked: np.ndarray, threshold: float, path: Path) -> None:
    """Of what is called blocked, how much is; of what is blocked, how much is called so."""
    recall, precision, average = metrics.precision_recall(labels, p_blocked)
    said = metrics.decided(p_blocked, threshold)
    called = said == metrics.BLOCKED
    figure = _new(4.8, 4.2)
    axes = _axes(
        figure,
        "Precision and recall",
        "recall: share of blocked called blocked",
        "precision: share of these that are blocked",
    )
    share = float(np.mean(labels == metrics.BLOCKED))
    axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.step(recall, precision, where="pre", color=INK[metrics.BLOCKED], label=f"this network, average {average:.3f}")
    if called.any():
        here = (metrics.recall(labels, said, metrics.BLOCKED), float(np.mean(labels[called] == metrics.BLOCKED)))
        axes.plot(*here, "o", color="black", label=f"threshold {threshold:.2f}", clip_on=False, zorder=3)
    _square(axes)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=DPI)


def _square(axes: Any) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def calibration(labels: np.ndarray, p_blocked: np.ndarray, path: Path) -> None:
    """How often an image is blocked, by the probability that the network gave; honest ones lie on the diagonal."""
    bins = metrics.equal_mass_bins(p_blocked)
    filled = [bins == index for index in np.unique(bins)]
    given = [float(np.mean(p_blocked[inside])) for inside in filled]
    found = [float(np.mean(labels[inside] == metrics.BLOCKED)) for inside in filled]
    error = metrics.calibration_error(labels, p_blocked)
    figure = _new(4.8, 4.2)
    axes = _axes(figure, "Reliability", "mean probability of blocked (bins of equal mass)", "share that is blocked")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="honest")
    label = f"expected error {error:.3f} ({_counted(len(filled), 'bin')})"
    axes.plot(given, found, "o-", color=INK[metrics.BLOCKED], label=label, clip_on=False)
    _square(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=DPI)


def probabilities(labels: np.ndarray, p_blocked: np.ndarray, threshold: float, path: Path) -> None:
    """How many images of each class got which probability: two humps apart, or one in the middle."""
    figure = _new(5.6, 3.6)
    axes = _axes(figure, "Probabilities by class", "probability of blocked", "images")
    edges = np.linspace(0, 1, 26)
    for label, hatch in ((metrics.FREE, ""), (metrics.BLOCKED, "///")):
        values = p_blocked[labels == label]
        style = {"histtype": "stepfilled", "alpha": 0.45, "edgecolor": INK[label], "facecolor": INK[label]}
        axes.hist(values, bins=edges, hatch=hatch, label=f"{CLASSES[label]} ({len(values)})", **style)
    axes.axvline(threshold, color="black", linewidth=1.2, linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set_xlim(0, 1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)


def mistakes(test: Answers, path: Path, most: int = MOST_MISTAKES) -> None:
    """The pictures that were judged wrongly, the most confident first, each with its name and probability."""
    wrong = np.flatnonzero(metrics.decided(test.p_blocked, test.threshold) != test.labels)
    surprise = np.where(test.labels == metrics.BLOCKED, 1 - test.p_blocked, test.p_blocked)[wrong]
    shown = wrong[np.argsort(-surprise, kind="stable")][:most]
    columns = 5
    rows = max(1, -(-len(shown) // columns))
    figure = _new(columns * 2.0, rows * 2.4 + 0.5 if len(shown) else 0.8)
    head = f"{len(wrong)} of {len(test.labels)} images judged wrongly"
    figure.suptitle(f"{head}; the {len(shown)} most confident" if len(shown) < len(wrong) else head, fontsize=11)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place >= len(shown):
            continue
        index = int(shown[place])
        axes.imshow(np.asarray(test.pixels[index]))
        is_label = int(test.labels[index])
        axes.set_title(
            f"is {CLASSES[is_label]}, P(blocked) {test.p_blocked[index]:.2f}", fontsize=8, color=INK[is_label]
        )
        session, _, file = str(test.names[index]).partition("/")
        caption = f"{_short(session, 30)}\n{_short(file, 30)}"
        axes.text(0.5, -0.03, caption, transform=axes.transAxes, ha="center", va="top", fontsize=6.5)
    figure.savefig(path, dpi=DPI)


def _short(text: str, most: int) -> str:
    """With its middle left out: file names differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


_BARS = (  # metric, name, colour, marker, place beside the line's middle
    ("balanced_accuracy", "balanced accuracy", "black", "o", -0.17),
    ("blocked_recall", "blocked recall", INK[metrics.BLOCKED], "s", 0.17),
)


def by_source(lines: Sequence[Mapping[str, Any]], path: Path, key: str = "source") -> None:
    """Balanced accuracy and blocked recall of each source (or session) as points with their 95 % intervals.

    Args:
        lines: `key`, `images`, `groups`, and the metrics with `_low` and `_high`; what is missing or nan is not drawn.
        path: of the PNG file.
        key: name of the column that says which.
    """
    ordered = sorted(lines, key=lambda line: (not _is_number(line.get("balanced_accuracy")), line["balanced_accuracy"]))
    shown = list(ordered[:MOST_ROWS])
    figure = _new(8.2, 0.42 * max(len(shown), 2) + 1.5)
    left_out = f"; the {len(shown)} worst of {len(lines)}" if len(shown) < len(lines) else ""
    axes = _axes(figure, f"By {key}, with 95 % intervals{left_out}")
    for metric, text, ink, shape, offset in _BARS:
        known = [(row + offset, line) for row, line in enumerate(shown) if _is_number(line.get(metric))]
        for y, line in known:
            low, high = line.get(f"{metric}_low"), line.get(f"{metric}_high")
            sure = _is_number(low) and _is_number(high)
            if sure:
                axes.plot([low, high], [y, y], color=ink, linewidth=2, alpha=0.5, solid_capstyle="butt")
            told = f"{line[metric]:.2f}  ({low:.2f} to {high:.2f})" if sure else f"{line[metric]:.2f}"
            axes.text(1.03, y, told, color=ink, fontsize=7.5, va="center")
        axes.plot(
            [line[metric] for _, line in known], [y for y, _ in known], shape, color=ink, label=text, markersize=6
        )
    names = [
        f"{_short(str(line[key]), 44)}\n{_counted(line['images'], 'image')} of {_counted(line['groups'], 'view')}"
        for line in shown
    ]
    axes.set_yticks(range(len(shown)), names, fontsize=7.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=DPI)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _is_number(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def learning_curves(history: Dict[str, List[float]], path: Path) -> None:
    """Losses and the validation part's balanced accuracy by epoch.

    Args:
        history: columns of history.csv, `epoch` among them; of the others, losses and accuracies are drawn.
        path: of the PNG file.
    """
    figure = _new(8.2, 3.4)
    left, right = figure.subplots(1, 2)
    inks = {"train": GREY, "validation": "black"}
    for axes, what in ((left, "loss"), (right, "accuracy")):
        axes.set_title(what.capitalize(), fontsize=11, loc="left")
        for name, values in history.items():
            if name.endswith(what):
                part = name.split("_")[0]
                axes.plot(history["epoch"], values, color=inks.get(part), marker=".", label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
