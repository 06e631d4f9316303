"""Leaving sources out: what is learned from, what is judged, and who chooses the threshold."""

from typing import List

import numpy as np
import pytest

from training import cross_validation as cv
from training.dataset import Row
from training.metrics import BLOCKED


def rows(source: str, count: int, simulated: bool = False, labels: str = "blocked free") -> List[Row]:
    names = labels.split()
    return [
        Row(
            f"{source}/{names[i % len(names)]}/{i}.jpg",
            names[i % len(names)],
            source,
            source,
            str(i),
            "train",
            simulated,
        )
        for i in range(count)
    ]


def test_only_real_sources_with_both_classes_are_judged() -> None:
    """Simulated sources, and sources of one class, are learned from and never left out."""
    every = rows("lab", 4) + rows("home", 4) + rows("arena", 4, simulated=True) + rows("wall", 4, labels="blocked")
    assert cv.sources(every) == ["home", "lab"]


def test_no_fold_learns_from_what_it_judges() -> None:
    """Each real source is judged once, by a training without it and with everything else."""
    every = rows("lab", 6) + rows("home", 4) + rows("hall", 2) + rows("arena", 5, simulated=True)
    asked = []

    def train(name: str, training: List[Row], judged: List[Row]) -> np.ndarray:
        asked.append(name)
        assert {row.source for row in judged} == {name}
        assert {row.source for row in training} == {"lab", "home", "hall", "arena"} - {name}
        assert len(training) + len(judged) == len(every)
        return np.zeros((len(judged), 2), dtype=np.float32)

    judged = cv.leave_out(every, cv.folds(every, 5), train)
    assert asked == ["hall", "home", "lab"]
    assert sorted(judged.rows) == sorted(row for row in every if not row.simulated)
    assert [row.label == "blocked" for row in judged.rows] == (judged.labels == BLOCKED).tolist()


def test_more_sources_than_folds_share_them() -> None:
    """Every source is in one fold, and the folds are about as large."""
    every = [row for name, count in zip("abcde", (12, 2, 4, 6, 4), strict=True) for row in rows(name, count)]
    found = cv.folds(every, 2)
    assert sorted(name for fold in found for name in fold) == list("abcde")
    sizes = [sum(row.source in fold for row in every) for fold in found]
    assert max(sizes) <= 2 * min(sizes)


def judged(**sources: float) -> cv.Judged:
    """Twenty images of each source, well separated, and shifted by so much towards `blocked`."""
    every, logits = [], []
    for name, shift in sources.items():
        for row in rows(name, 20):
            every.append(row)
            logits.append([2.0 + shift if row.label == "blocked" else -2.0 + shift, 0.0])
    labels = np.array([0 if row.label == "blocked" else 1 for row in every], dtype=np.int64)
    return cv.Judged(every, labels, np.array(logits, dtype=np.float32))


def test_a_source_has_no_say_in_its_own_threshold() -> None:
    """Its labels may be turned round, and what it is judged with stays the same."""
    found = judged(lab=0.0, home=1.0, hall=-1.0)
    own = np.array([row.source == "lab" for row in found.rows])
    turned = found._replace(labels=np.where(own, 1 - found.labels, found.labels))
    assert cv.choices(found, 0.9, 1)["lab"] == cv.choices(turned, 0.9, 1)["lab"]
    assert cv.choices(found, 0.9, 1)["home"] != cv.choices(turned, 0.9, 1)["home"]


@pytest.mark.parametrize("most", [20, 400])
def test_every_source_counts_the_same(most: int) -> None:
    """A large source, answered well with any threshold, does not outvote the small ones."""
    found = judged(lab=0.0, home=-3.0)
    times = np.concatenate([np.repeat(np.arange(20), most // 20), np.arange(20, 40)])
    larger = cv.Judged([found.rows[i] for i in times], found.labels[times], found.logits[times])
    assert cv.choose(larger, 0.9, 1).threshold == pytest.approx(cv.choose(found, 0.9, 1).threshold)
    assert cv.choose(larger, 0.9, 1).reached


def test_the_threshold_is_what_a_miss_costs() -> None:
    """Where the recall there is as asked, the robot turns from 1 / (1 + cost)."""
    found = judged(lab=0.0, home=1.0)
    assert [cv.choose(found, 0.9, cost).threshold for cost in (1, 2, 4)] == pytest.approx([1 / 2, 1 / 3, 1 / 5])


def test_the_temperature_makes_the_network_less_sure_and_never_surer() -> None:
    """Where all answers are right it stays as sure as it is; where some are wrong it is told to be less so."""
    right = cv.choose(judged(lab=0.0, home=0.0), 0.9, 1)
    assert right.temperature == 1.0 > right.fitted_temperature
    wrong = judged(lab=0.0, home=0.0)
    wrong = wrong._replace(labels=np.where(np.arange(40) % 5 == 0, 1 - wrong.labels, wrong.labels))
    assert cv.choose(wrong, 0.9, 1).temperature > 1.1


def test_it_is_lowered_where_the_sources_agree_that_it_misses() -> None:
    """Sources that are all alike speak against it."""
    missed = cv.choose(judged(lab=-3.0, home=-3.0, hall=-3.0), 0.9, 1)
    assert missed.threshold < 0.5
    assert missed.reached


def test_two_sources_that_differ_say_nothing_about_a_third() -> None:
    """One misses all, one nothing: the mean of such sources may be anything, and the threshold stays."""
    assert cv.choose(judged(lab=-3.0, home=2.0), 0.9, 2).threshold == pytest.approx(1 / 3)
    alone = cv.choose(judged(lab=-3.0), 0.9, 2)
    assert alone.threshold == pytest.approx(1 / 3)
