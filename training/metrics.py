"""How good a network is, in numpy alone: a training board need not have scikit-learn.

Classes are numbers: 0 blocked, 1 free. `p_blocked` is the probability of `blocked` that the network gives.
How sure the figures are is in intervals.py.
"""

from typing import Dict, NamedTuple, Optional, Tuple, Union

import numpy as np

BLOCKED, FREE = 0, 1
MOST_BINS = 10
FEWEST_IN_BIN = 10  # images; with fewer, chance alone would look like a calibration error
Threshold = Union[float, np.ndarray]  # one for all images, or one each: (N,)


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, 2) logits, blocked first, to (N,) probabilities of `blocked`: softmax(logits / temperature)[:, 0]."""
    margin = (logits[:, 1].astype(np.float64) - logits[:, 0]) / temperature
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(margin, -700, 700))))


def recall(labels: np.ndarray, said: np.ndarray, label: int) -> float:
    """Share of the images of `label` that were said to be it; nan without such images."""
    chosen = labels == label
    return float(np.mean(said[chosen] == label)) if chosen.any() else float("nan")


def balanced_accuracy(labels: np.ndarray, said: np.ndarray) -> float:
    """Mean of the recalls of the classes that are there; 0.5 is chance, whatever their shares."""
    present = [label for label in (BLOCKED, FREE) if (labels == label).any()]
    return float(np.mean([recall(labels, said, label) for label in present])) if present else float("nan")


def decided(p_blocked: np.ndarray, threshold: Threshold) -> np.ndarray:
    """(N,) classes: blocked where its probability reaches the threshold, as the robot decides."""
    return np.where(p_blocked >= threshold, BLOCKED, FREE)


def cross_entropy(labels: np.ndarray, p_blocked: np.ndarray, weights: Optional[np.ndarray] = None) -> float:
    """Mean of -log of the probability given to the true class; (N,) weights where images do not count the same."""
    given = np.where(labels == BLOCKED, p_blocked, 1 - p_blocked)
    return float(-np.average(np.log(np.clip(given, 1e-12, 1.0)), weights=weights))


class Roc(NamedTuple):
    """One point per threshold, from the strictest to the laxest; `blocked` is the positive class."""

    false_positive_rate: np.ndarray  # share of free said to be blocked
    true_positive_rate: np.ndarray  # recall of blocked
    threshold: np.ndarray  # the first is inf: nothing is said to be blocked


def roc(labels: np.ndarray, p_blocked: np.ndarray) -> Roc:
    """The receiver operating characteristic; both classes must be there."""
    order = np.argsort(-p_blocked, kind="stable")
    positive = labels[order] == BLOCKED
    last_of_value = np.append(np.diff(p_blocked[order]) != 0, True)  # equal scores are one point
    hits = np.cumsum(positive)[last_of_value] / max(positive.sum(), 1)
    false = np.cumsum(~positive)[last_of_value] / max((~positive).sum(), 1)
    thresholds = p_blocked[order][last_of_value]
    return Roc(np.append(0.0, false), np.append(0.0, hits), np.append(np.inf, thresholds))


def roc_auc(labels: np.ndarray, p_blocked: np.ndarray) -> float:
    """Area under the ROC: how often a blocked image gets a higher probability than a free one; nan with one class."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    curve = roc(labels, p_blocked)
    widths = np.diff(curve.false_positive_rate)
    heights = (curve.true_positive_rate[1:] + curve.true_positive_rate[:-1]) / 2
    return float(np.sum(widths * heights))


def precision_recall(labels: np.ndarray, p_blocked: np.ndarray) -> Tuple[np.ndarray, np.ndarray, float]:
    """Recall and precision of `blocked` from the strictest threshold to the laxest, and the average precision."""
    curve = roc(labels, p_blocked)
    hits = curve.true_positive_rate * np.sum(labels == BLOCKED)
    false = curve.false_positive_rate * np.sum(labels == FREE)
    precision = np.append(1.0, hits[1:] / (hits[1:] + false[1:]))  # nothing said to be blocked: by convention 1
    return curve.true_positive_rate, precision, float(np.sum(np.diff(curve.true_positive_rate) * precision[1:]))


def equal_mass_bins(p_blocked: np.ndarray) -> np.ndarray:
    """(N,) bin of each image, from 0: at most ten bins of about as many images each, equal probabilities together."""
    bins = int(np.clip(len(p_blocked) // FEWEST_IN_BIN, 1, MOST_BINS))
    edges = np.quantile(p_blocked, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, p_blocked, side="right")


def calibration_error(labels: np.ndarray, p_blocked: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017) over bins of equal mass: 0.1 is ten points off on average.

    Equal mass (Nixon et al. 2019, "adaptive") because a trained network puts most images near 0 and 1: bins of equal
    width would leave those between nearly empty, and their noise would count.
    """
    if not len(labels):
        return float("nan")
    off = np.bincount(equal_mass_bins(p_blocked), weights=p_blocked - (labels == BLOCKED))
    return float(np.abs(off).sum() / len(labels))


def measure(labels: np.ndarray, p_blocked: np.ndarray, threshold: Threshold) -> Dict[str, float]:
    """The metrics that everything here is compared by; what cannot be measured is nan."""
    said = decided(p_blocked, threshold)
    return {
        "balanced_accuracy": balanced_accuracy(labels, said),
        "blocked_recall": recall(labels, said, BLOCKED),
        "free_recall": recall(labels, said, FREE),
        "roc_auc": roc_auc(labels, p_blocked),
        "calibration_error": calibration_error(labels, p_blocked),
    }


def confusion(labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(2, 2) counts: row the true class, column what was said."""
    return np.array([[int(np.sum((labels == a) & (said == b))) for b in (BLOCKED, FREE)] for a in (BLOCKED, FREE)])


def best_temperature(labels: np.ndarray, logits: np.ndarray, weights: Optional[np.ndarray] = None) -> float:
    """The temperature that makes the probabilities fit best (least cross entropy; Guo et al. 2017).

    Searched within 0.25..8, so that a small set that is separated perfectly does not make every answer a certainty.
    """
    candidates = np.geomspace(0.25, 8.0, 101)
    losses = [cross_entropy(labels, probabilities(logits, float(t)), weights) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def _share_below(candidates: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,) the weighted share of the values that are smaller than each candidate."""
    order = np.argsort(values)
    below = np.append(0.0, np.cumsum(weights[order]))
    return np.asarray(below[np.searchsorted(values[order], candidates)] / max(float(below[-1]), 1e-12))


def choose_threshold(
    labels: np.ndarray, p_blocked: np.ndarray, min_blocked_recall: float, weights: Optional[np.ndarray] = None
) -> Tuple[float, bool]:
    """The threshold with the best balanced accuracy among those that reach the recall of `blocked`.

    Candidates lie midway between neighbouring probabilities, in logits, and within 0.02..0.98, so that a robot never
    calls everything blocked only because one image of the set was hopeless.

    Args:
        labels, p_blocked: (N,).
        min_blocked_recall: 0..1.
        weights: (N,), where images do not count the same.

    Returns:
        The threshold, and whether it reaches the recall; if none does, the one with the highest recall.
    """
    scores = np.unique(np.clip(p_blocked, 1e-6, 1 - 1e-6))
    logits = np.log(scores / (1 - scores))
    between = 1 / (1 + np.exp(-(logits[1:] + logits[:-1]) / 2))
    candidates = np.clip(np.concatenate([between, [0.02, 0.5, 0.98]]), 0.02, 0.98)

    weights = np.ones(len(labels)) if weights is None else weights
    found = 1 - _share_below(candidates, p_blocked, weights * (labels == BLOCKED))
    passed = _share_below(candidates, p_blocked, weights * (labels == FREE))
    results = np.stack([candidates, found, (found + passed) / 2], axis=1)
    enough = results[found >= min_blocked_recall - 1e-9]
    if len(enough):
        return float(max(enough, key=lambda r: (r[2], -abs(r[0] - 0.5)))[0]), True
    return float(max(results, key=lambda r: (r[1], r[2]))[0]), False
