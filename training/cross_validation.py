"""Leave sources out: how a network that is trained so does in a place, or with a person, it has not seen.

Each real source in turn is kept from a training of its own and judged by that network. Simulated sources are learned
from in every fold and judged in none. The threshold that a source is judged with is chosen on the others, each judged
by a network that had not seen it.
"""

from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np

from serving.contracts.sessions import LABELS
from training import intervals, metrics
from training.dataset import Row

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; with more, the last.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Judged(NamedTuple):
    """Every real image with the answer of the network that was trained without its source."""

    rows: List[Row]
    labels: np.ndarray  # (N,) int64
    logits: np.ndarray  # (N, 2) float32


class Choice(NamedTuple):
    """What turns logits into decisions."""

    temperature: float  # at least 1
    threshold: float
    fitted_temperature: float  # the one that fits best where the choice was made
    reached: bool  # whether the recall asked for was reached, or may have been, where it was chosen


Train = Callable[[str, List[Row], List[Row]], np.ndarray]  # (name of the fold, training, judged) -> (N, 2) logits


def sources(rows: Sequence[Row]) -> List[str]:
    """The real sources that have both classes, in order; of the others nothing could be said."""
    classes: Dict[str, set] = {}  # type: ignore[type-arg]
    for row in rows:
        if not row.simulated:
            classes.setdefault(row.source, set()).add(row.label)
    return sorted(source for source, labels in classes.items() if len(labels) == 2)


def folds(rows: Sequence[Row], most: int) -> List[List[str]]:
    """The judged sources, one a fold; where there are more than `most`, the larger ones share with the smaller."""
    judged = sources(rows)
    size = {source: sum(row.source == source for row in rows) for source in judged}
    found: List[List[str]] = [[] for _ in range(min(most, len(judged)))]
    for source in sorted(judged, key=lambda name: (-size[name], name)):
        min(found, key=lambda fold: sum(size[name] for name in fold)).append(source)
    return sorted(found)


def leave_out(every: Sequence[Row], left_out: Sequence[Sequence[str]], train: Train) -> Judged:
    """Trains once for each fold.

    Args:
        every: all images, of every part of the split: what is judged here was not trained on here.
        left_out: the sources of each fold, as `folds` gives them.
        train: trains a network and gives its answers.
    """
    judged: List[Row] = []
    answers = []
    for fold in left_out:
        unseen = [row for row in every if row.source in fold and not row.simulated]
        answers.append(train(", ".join(fold), [row for row in every if row.source not in fold], unseen))
        judged += unseen
    labels = np.array([LABELS.index(row.label) for row in judged], dtype=np.int64)
    return Judged(judged, labels, np.concatenate(answers) if answers else np.empty((0, 2), dtype=np.float32))


def choose(judged: Judged, min_blocked_recall: float, miss_cost: float) -> Choice:
    """Temperature and threshold from answers about sources that the answering network had not seen.

    A few sources say little about the best threshold in the next one, and chasing it costs more than it gives
    (docs/training.md). So the threshold is the one that what is at stake asks for (Elkan 2001): with calibrated
    probabilities, turning where `p >= 1 / (1 + miss_cost)` costs least. It is another one only where the answers
    speak against it: the blocked recall there is below what is asked even at the upper end of what the sources, as a
    sample of those to come, leave possible. Every source counts the same, however many images it has.

    The temperature may make the network less sure and never surer: how well it does on a few sources is no reason to
    believe it more than it does itself in the next one (docs/training.md has the cross entropy there with both).

    Args:
        judged: answers.
        min_blocked_recall: 0..1.
        miss_cost: false stops that one missed obstacle is worth.
    """
    weights = _equal_weights(judged)
    fitted = metrics.best_temperature(judged.labels, judged.logits, weights)
    temperature = max(1.0, fitted)
    p_blocked = metrics.probabilities(judged.logits, temperature)
    threshold = 1.0 / (1.0 + miss_cost)
    if _highest_recall(judged, p_blocked, threshold) >= min_blocked_recall:
        return Choice(temperature, threshold, fitted, True)
    threshold, reached = metrics.choose_threshold(judged.labels, p_blocked, min_blocked_recall, weights)
    return Choice(temperature, threshold, fitted, reached)


def choices(judged: Judged, min_blocked_recall: float, miss_cost: float) -> Dict[str, Choice]:
    """For each source, what the others would have chosen."""
    source_of = np.array([row.source for row in judged.rows])
    found = {}
    for source in sorted(set(source_of)):
        kept = np.flatnonzero(source_of != source)
        others = Judged([judged.rows[index] for index in kept], judged.labels[kept], judged.logits[kept])
        found[str(source)] = choose(others, min_blocked_recall, miss_cost)
    return found


def _highest_recall(judged: Judged, p_blocked: np.ndarray, threshold: float) -> float:
    """Upper end of the 95 % interval of the mean blocked recall over sources; what is drawn are views and sources.

    The bootstrap over views knows nothing of how unlike sources are; Student's t over sources knows nothing else.
    """
    source_of = np.array([row.source for row in judged.rows])
    everywhere = np.full(len(judged.rows), threshold)
    groups = [row.group for row in judged.rows]
    of_views = intervals.mean_summary(judged.labels, p_blocked, everywhere, groups, source_of.tolist())
    said = metrics.decided(p_blocked, threshold)
    recalls = [
        metrics.recall(judged.labels[source_of == source], said[source_of == source], metrics.BLOCKED)
        for source in np.unique(source_of)
    ]
    if len(recalls) < 2:
        return 1.0
    times = STUDENT[min(len(recalls) - 1, len(STUDENT)) - 1]
    of_sources = float(np.mean(recalls) + times * np.std(recalls, ddof=1) / np.sqrt(len(recalls)))
    return max(of_views["blocked_recall_high"], min(1.0, of_sources))


def _equal_weights(judged: Judged) -> np.ndarray:
    """(N,) so that every class of every source weighs the same; the mean is 1."""
    source_of = np.array([row.source for row in judged.rows], dtype=str)
    keys = np.char.add(source_of, np.where(judged.labels == metrics.BLOCKED, "/blocked", "/free"))
    _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[index]
    return np.asarray(weights * len(weights) / weights.sum())
