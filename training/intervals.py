"""How sure the metrics are: 95 % intervals by bootstrap (Efron 1979), in numpy alone.

What is drawn again is the near-duplicate group, never the image: twenty frames of one view are one piece of evidence,
and an interval that counted them as twenty would be too narrow. The interval tells what other views of the same places
would give; it cannot tell what another place would give: for that, see the metrics by source.
"""

from typing import Dict, List, Sequence, Tuple

import numpy as np

from training.metrics import BLOCKED, FREE, Threshold, decided, equal_mass_bins, measure

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
CELLS_AT_ONCE = 250_000  # resamples x images that are worked on together: what a processor's cache holds


def summary(
    labels: np.ndarray, p_blocked: np.ndarray, threshold: Threshold, groups: Sequence[object], seed: int = 1
) -> Dict[str, float]:
    """The metrics of `metrics.measure`, each with `<metric>_low` and `<metric>_high`, and the counts they rest on.

    Args:
        labels: (N,) classes.
        p_blocked: (N,) probabilities.
        threshold: of the decision; (N,) where images were decided with different ones.
        groups: (N,) near-duplicate group of each image, of any type.
        seed: the same one gives the same intervals.

    Returns:
        Also `images`, `blocked`, `free` and `groups`. A metric, or an end of an interval, that cannot be told is nan:
        with a single group, or the area under the curve of classes that are separated without a mistake.
    """
    values = measure(labels, p_blocked, threshold)
    return _table(values, resample(labels, p_blocked, threshold, groups, seed), _counts(labels, groups))


def mean_summary(
    labels: np.ndarray,
    p_blocked: np.ndarray,
    threshold: np.ndarray,
    groups: Sequence[object],
    parts: Sequence[object],
    seed: int = 1,
) -> Dict[str, float]:
    """As `summary`, of the mean over `parts` ((N,), such as sources): each part counts the same, however large.

    Args:
        threshold: (N,).
    """
    part_of, names = np.asarray(parts), sorted(set(parts), key=str)
    group_of = np.asarray(groups)
    values: List[Dict[str, float]] = []
    draws: List[Dict[str, np.ndarray]] = []
    for index, name in enumerate(names):
        chosen = part_of == name
        one = (labels[chosen], p_blocked[chosen], threshold[chosen])
        values.append(measure(*one))
        draws.append(resample(*one, group_of[chosen], seed + index))
    mean = {metric: float(np.mean([value[metric] for value in values])) for metric in values[0]}
    drawn = {metric: np.mean([draw[metric] for draw in draws], axis=0) for metric in values[0]}
    return _table(mean, drawn, _counts(labels, groups))


def resample(
    labels: np.ndarray,
    p_blocked: np.ndarray,
    threshold: Threshold,
    groups: Sequence[object],
    seed: int = 1,
    resamples: int = RESAMPLES,
) -> Dict[str, np.ndarray]:
    """(R,) values of every metric, on so many draws of groups with replacement; nan where a draw lacks a class."""
    _, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count = int(group.max()) + 1
    right = labels == decided(p_blocked, threshold)
    is_blocked = labels == BLOCKED
    masks = (is_blocked, right & is_blocked, ~is_blocked, right & ~is_blocked)
    tallies = np.stack([np.bincount(group, weights=mask, minlength=count) for mask in masks], axis=1).astype(np.float32)
    bins = equal_mass_bins(p_blocked)
    off = np.zeros((count, int(bins.max()) + 1), dtype=np.float32)
    np.add.at(off, (group, bins), p_blocked - is_blocked)
    area = _Area(labels, p_blocked, group)

    generator = np.random.default_rng(seed)
    held, errors, areas = [], [], []
    at_once = max(1, CELLS_AT_ONCE // max(len(labels), count))
    for start in range(0, resamples, at_once):
        weights = _draw(generator, count, min(at_once, resamples - start))
        held.append(weights @ tallies)
        errors.append(np.abs(weights @ off).sum(axis=1))
        areas.append(area.of(weights))
    blocked, blocked_right, free, free_right = np.concatenate(held).T
    recalls = {
        "blocked_recall": _recalls(tallies[:, 0], tallies[:, 1], blocked, blocked_right, generator),
        "free_recall": _recalls(tallies[:, 2], tallies[:, 3], free, free_right, generator),
    }
    there = {"blocked_recall": is_blocked.any(), "free_recall": not is_blocked.all()}
    return {
        "balanced_accuracy": np.mean([draws for name, draws in recalls.items() if there[name]], axis=0),
        **recalls,
        "roc_auc": np.concatenate(areas),
        "calibration_error": np.concatenate(errors) / (blocked + free),
    }


def _draw(generator: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """(R, G) how often each group is in each resample of as many groups."""
    drawn = generator.integers(0, count, (resamples, count))
    drawn += np.arange(resamples)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float32)


def _recalls(
    images: np.ndarray, right: np.ndarray, drawn: np.ndarray, drawn_right: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(R,) recalls of one class, from its tallies per group (G,) and per resample (R,).

    Where all are right, or all wrong, there is nothing to resample, and yet five of five are no certainty: there the
    recall is drawn from Jeffreys' posterior (Brown et al. 2001) over the groups.
    """
    groups = int(np.count_nonzero(images))
    if groups and right.sum() in (0, images.sum()):
        draws = generator.beta(groups + 0.5, 0.5, len(drawn))
        return draws if right.any() else 1 - draws
    if groups < 2:
        return np.full(len(drawn), np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(drawn_right / drawn)


class _Area:
    """The area under the ROC of weighted images: the share of pairs of blocked and free that are in the right order."""

    def __init__(self, labels: np.ndarray, p_blocked: np.ndarray, group: np.ndarray) -> None:
        free = np.flatnonzero(labels == FREE)
        free = free[np.argsort(p_blocked[free])]
        blocked = labels == BLOCKED
        self._free_group, self._blocked_group = group[free], group[blocked]
        # Of each blocked image: how many free ones lie below it, not counting and counting those that are equal.
        self._below = np.searchsorted(p_blocked[free], p_blocked[blocked], side="left")
        self._up_to = np.searchsorted(p_blocked[free], p_blocked[blocked], side="right")

    def of(self, weights: np.ndarray) -> np.ndarray:
        """(R,) areas from (R, G) weights of the groups; nan where a class has no weight."""
        free, blocked = weights[:, self._free_group], weights[:, self._blocked_group]
        sums = np.zeros((len(weights), free.shape[1] + 1), dtype=np.float32)  # exact up to 16 million
        np.cumsum(free, axis=1, out=sums[:, 1:])
        below = (sums[:, self._below] + sums[:, self._up_to]) / 2
        pairs = blocked.sum(axis=1) * sums[:, -1]
        with np.errstate(invalid="ignore"):
            return np.asarray(np.einsum("rn,rn->r", blocked, below) / np.where(pairs > 0, pairs, np.nan))


def _counts(labels: np.ndarray, groups: Sequence[object]) -> Dict[str, float]:
    blocked = int(np.sum(labels == BLOCKED))
    return {"images": len(labels), "blocked": blocked, "free": len(labels) - blocked, "groups": len(set(groups))}


def _table(values: Dict[str, float], draws: Dict[str, np.ndarray], counts: Dict[str, float]) -> Dict[str, float]:
    found = dict(counts)
    for metric, value in values.items():
        found[metric] = value
        found[f"{metric}_low"], found[f"{metric}_high"] = _interval(metric, value, draws[metric])
    return found


def _interval(metric: str, value: float, draws: np.ndarray) -> Tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws) or np.ptp(draws) < 1e-12:
        return float("nan"), float("nan")
    if metric == "calibration_error":  # noise only ever adds to it, so that every resample is worse than the whole
        draws = np.clip(draws - draws.mean() + value, 0, 1)
    low, high = np.quantile(draws, LEVELS)
    return min(float(low), value), max(float(high), value)
