"""What the episodes of a suite amount to: figures with 95 % intervals, and the difference between two networks.

Intervals are by bootstrap (Efron 1979) over rooms: what other rooms of this kind would give. Episodes in one room are
one piece of evidence. Two networks on the same suite are compared in pairs: each draw takes the same rooms of both.
The interval of the collisions, which the release service judges, is a rate's: `_rate_interval` says which.

Whether more rooms are to be driven is decided here too (`undecided`). Who looks several times and stops at the first
clear answer is wrong more often than at one look; so each of K looks has 1/K of the 5 % (Bonferroni): the chance that
any of the intervals misses is 5 % at most, whatever the rooms are like and whenever the driving stops. Pocock (1977)
has one level for all looks too, and for sums that are normal a milder one: 0.0182 at each of four, here 0.0125.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from simulator.suite import Counts, Episode

RESAMPLES = 2000
TAIL = 0.025  # beyond each end of an interval
PROMISE_ROOMS = 5
PROMISE_LEVEL = 0.001  # a false alarm puts a good engine back for good, so they must be rare
PROMISE_MARGIN = 0.05  # of the blocked rate
PROMISE_SPINS = 1.0  # a minute

Figures = dict[str, float]  # name, name_low, name_high; what cannot be told is nan


class Limits(NamedTuple):
    """What the release service asks of a drive; None: not asked."""

    max_collisions_per_100m: float | None = None
    min_distance_m_per_min: float | None = None


def totals(episodes: Iterable[Episode]) -> dict[int, Counts]:
    """Room's seed -> the counts of its episodes, added up; in order of the seeds."""
    found: dict[int, Counts] = {}
    for episode in sorted(episodes, key=lambda one: (one.seed, one.start)):
        before = found.get(episode.seed, Counts())
        found[episode.seed] = Counts._make(a + b for a, b in zip(before, episode.counts, strict=True))
    return found


def figures(rooms: Mapping[int, Counts], seed: int = 1, looks: int = 1) -> Figures:
    """The figures of one network; see `_figures` for what they are.

    Args:
        rooms: what `totals` gave.
        seed: the same one gives the same intervals.
        looks: how often, at most, intervals of this drive are looked at to decide whether to drive on.
    """
    values, draws = _both(rooms, seed)
    table = _table(values, draws, TAIL / looks)
    rate = "collisions_per_100m"
    table[f"{rate}_low"], table[f"{rate}_high"] = _rate_interval(rooms.values(), TAIL / looks)
    return table


def undecided(found: Figures, limits: Limits) -> bool:
    """Whether more rooms may tell what these do not: an interval holds its limit, and none is surely beyond one."""
    sure = []
    if (limit := limits.max_collisions_per_100m) is not None:
        low, high = found["collisions_per_100m_low"], found["collisions_per_100m_high"]
        if not low <= limit:  # nor is a number: it has not moved
            return False
        sure.append(high <= limit)
    if (limit := limits.min_distance_m_per_min) is not None:
        value = found["distance_m_per_min"]
        low, high = (found[f"distance_m_per_min_{end}"] for end in ("low", "high"))
        low, high = (end if math.isfinite(end) else value for end in (low, high))
        if high < limit:
            return False
        sure.append(low >= limit)
    return not all(sure)


def differences(rooms: Mapping[int, Counts], others: Mapping[int, Counts], seed: int = 1) -> Figures:
    """By how much the figures of a network are above those of another that drove in the same rooms.

    Raises:
        ValueError: the rooms are not the same.
    """
    if list(rooms) != list(others):
        raise ValueError("only drives in the same rooms can be compared")
    values, draws = _both(rooms, seed)
    other_values, other_draws = _both(others, seed)
    return _table(
        {name: value - other_values[name] for name, value in values.items()},
        {name: drawn - other_draws[name] for name, drawn in draws.items()},
        TAIL,
    )


def promise(rooms: Mapping[int, Counts]) -> Figures:
    """Within what a robot's blocked rate and spins stay in one more room: what its passport promises of the network.

    A prediction interval of Student's t over the rooms, at PROMISE_LEVEL on each side, and PROMISE_MARGIN more: a real
    floor is no arena. Empty with fewer than PROMISE_ROOMS rooms.
    """
    from scipy.stats import t

    if len(rooms) < PROMISE_ROOMS:
        return {}
    found = _figures(np.array(list(rooms.values()), np.float64))
    wide = float(t.ppf(1 - PROMISE_LEVEL, len(rooms) - 1)) * math.sqrt(1 + 1 / len(rooms))
    rate, spins = found["blocked_rate"], found["spins_per_min"]
    middle, reach = float(rate.mean()), wide * float(rate.std(ddof=1)) + PROMISE_MARGIN
    return {
        "blocked_rate_low": round(max(middle - reach, 0.0), 4),
        "blocked_rate_high": round(min(middle + reach, 1.0), 4),
        "spins_per_min_high": round(float(spins.mean()) + wide * float(spins.std(ddof=1)) + PROMISE_SPINS, 2),
    }


def _both(rooms: Mapping[int, Counts], seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    tallies = np.array(list(rooms.values()), np.float64)  # (rooms, fields of Counts)
    rng = np.random.default_rng(seed)
    count = len(tallies)
    drawn = rng.integers(0, count, (RESAMPLES, count)) + np.arange(RESAMPLES)[:, None] * count
    weights = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    values = {name: float(value[0]) for name, value in _figures(tallies.sum(axis=0)[None]).items()}
    draws = _figures(weights @ tallies)
    if values["collisions_per_100m"] == 0:
        # Nothing to resample, and yet ten metres without a collision are no certainty: Jeffreys' posterior of a rate.
        draws["collisions_per_100m"] = rng.gamma(
            0.5, 100.0 / tallies[:, Counts._fields.index("distance_m")].sum(), RESAMPLES
        )
    return values, draws


def _figures(tallies: np.ndarray) -> dict[str, np.ndarray]:
    """(R, fields of Counts) -> (R,) of each figure; nan where there was nothing to measure it on.

    collisions_per_100m   contacts that began, per 100 m that the robot got
    distance_m_per_min    how far it got
    stuck_share           share of time stuck, or turning without end
    false_stop_share      share of the time with a free way ahead in which it held the way for blocked
    missed_share          share of the time with a blocked way ahead in which it held the way for free
    blocked_rate          share of the decisions that are not `forward`
    spins_per_min         how often it drove 3 s without one `forward` (serving/judge.py)
    """
    of = Counts(*tallies.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "collisions_per_100m": 100 * np.asarray(of.collisions) / of.distance_m,
            "distance_m_per_min": 60 * np.asarray(of.distance_m) / of.seconds,
            "stuck_share": np.asarray(of.stuck) / of.frames,
            "false_stop_share": np.asarray(of.false_stops) / of.free,
            "missed_share": np.asarray(of.missed) / of.blocked,
            "blocked_rate": np.asarray(of.turning) / of.frames,
            "spins_per_min": 60 * np.asarray(of.spins) / of.seconds,
        }
    return {name: np.where(np.isfinite(value), value, np.nan) for name, value in found.items()}


def _rate_interval(rooms: Iterable[Counts], tail: float) -> tuple[float, float]:
    """Collisions per 100 m: Garwood's (1936) interval of a Poisson rate, for counts that scatter more than Poisson's.

    How much more is the variance of the ratio over the rooms against Poisson's (McCullagh and Nelder 1989, 6.2): some
    rooms are harder than others. Counts are divided by it, one at least. With ten rooms a percentile bootstrap has the
    truth above its upper end four times as often as it says; this has it about as often as it says.
    """
    from scipy.stats import chi2

    tallies = Counts(*np.array(list(rooms), np.float64).T)
    collisions, distance_m = np.asarray(tallies.collisions), np.asarray(tallies.distance_m)
    count, total, total_m = len(collisions), collisions.sum(), distance_m.sum()
    if not total_m:
        return math.nan, math.nan
    scatter = 1.0
    if total and count > 1:
        residuals = collisions - distance_m * total / total_m
        scatter = max(1.0, float((residuals**2).sum()) * count / (count - 1) / total)
    low = float(chi2.ppf(tail, 2 * total / scatter)) if total else 0.0
    high = float(chi2.ppf(1 - tail, 2 * (total / scatter + 1)))
    return 50 * scatter * low / total_m, 50 * scatter * high / total_m


def _table(values: Mapping[str, float], draws: Mapping[str, np.ndarray], tail: float) -> Figures:
    table: Figures = {}
    for name, value in values.items():
        table[name] = value
        table[f"{name}_low"], table[f"{name}_high"] = _interval(value, draws[name], tail)
    return table


def _interval(value: float, draws: np.ndarray, tail: float) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if not math.isfinite(value) or not len(draws) or np.ptp(draws) < 1e-12:
        return math.nan, math.nan
    low, high = np.quantile(draws, (tail, 1 - tail))
    return min(float(low), value), max(float(high), value)
