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


class Judged(NamedTuple):
    """Every real image with the answer of the network that was trained without its source."""

    rows: List[Row]
    labels: np.ndarray  # (N,) int64
    logits: np.ndarray  # (N, 2) float32


class Choice(NamedTuple):
    """What turns logits into decisions."""

    temperature: float
    threshold: float
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


def choose(judged: Judged, min_blocked_recall: float) -> Choice:
    """Temperature and threshold from answers about sources that the answering network had not seen.

    A few sources say little about the best threshold in the next one, and chasing it costs more than it gives
    (docs/training.md). So the threshold stays at one half, where the training weighs both classes the same, unless
    the answers speak against it: the blocked recall there is below what is asked, by the upper end of its interval.
    Every source counts the same, however many images it has.
    """
    weights = _equal_weights([row.source for row in judged.rows], judged.labels)
    temperature = metrics.best_temperature(judged.labels, judged.logits, weights)
    p_blocked = metrics.probabilities(judged.logits, temperature)
    half = np.full(len(judged.rows), 0.5)
    groups, sources_of = [row.group for row in judged.rows], [row.source for row in judged.rows]
    told = intervals.mean_summary(judged.labels, p_blocked, half, groups, sources_of)
    if told["blocked_recall_high"] >= min_blocked_recall:
        return Choice(temperature, 0.5, True)
    threshold, reached = metrics.choose_threshold(judged.labels, p_blocked, min_blocked_recall, weights)
    return Choice(temperature, threshold, reached)


def choices(judged: Judged, min_blocked_recall: float) -> Dict[str, Choice]:
    """For each source, what the others would have chosen."""
    source_of = np.array([row.source for row in judged.rows])
    found = {}
    for source in sorted(set(source_of)):
        kept = np.flatnonzero(source_of != source)
        others = Judged([judged.rows[index] for index in kept], judged.labels[kept], judged.logits[kept])
        found[str(source)] = choose(others, min_blocked_recall)
    return found


def _equal_weights(source_of: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """(N,) so that every class of every source weighs the same; the mean is 1."""
    keys = np.char.add(np.asarray(source_of, dtype=str), np.where(labels == metrics.BLOCKED, "/blocked", "/free"))
    _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[index]
    return np.asarray(weights * len(weights) / weights.sum())
