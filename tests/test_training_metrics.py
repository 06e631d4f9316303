"""The metrics in numpy, against scikit-learn where it has them, and how sure they are."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import intervals, metrics

sklearn = pytest.importorskip("sklearn.metrics")  # comes with mlflow, not with the training board's extra

scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@settings(max_examples=50, deadline=None)
@given(scored)
def test_the_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """ROC, its area, balanced accuracy and recall agree, ties included."""
    labels = np.array([label for label, _ in pairs])
    p_blocked = np.array([score for _, score in pairs]) / 20
    positive = labels == metrics.BLOCKED
    assert metrics.roc_auc(labels, p_blocked) == pytest.approx(sklearn.roc_auc_score(positive, p_blocked))
    curve, theirs = metrics.roc(labels, p_blocked), sklearn.roc_curve(positive, p_blocked, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, theirs[0])
    np.testing.assert_allclose(curve.true_positive_rate, theirs[1])
    recall, precision, average = metrics.precision_recall(labels, p_blocked)
    assert average == pytest.approx(sklearn.average_precision_score(positive, p_blocked))
    theirs = sklearn.precision_recall_curve(positive, p_blocked)
    np.testing.assert_allclose([precision[::-1], recall[::-1]], theirs[:2])
    said = metrics.decided(p_blocked, 0.5)
    assert metrics.balanced_accuracy(labels, said) == pytest.approx(sklearn.balanced_accuracy_score(labels, said))
    assert metrics.recall(labels, said, 0) == pytest.approx(sklearn.recall_score(labels, said, pos_label=0))
    np.testing.assert_array_equal(metrics.confusion(labels, said), sklearn.confusion_matrix(labels, said))


@settings(max_examples=50, deadline=None)
@given(scored, st.floats(0.05, 0.95))
def test_a_chosen_threshold_does_what_was_asked_or_says_that_it_does_not(
    pairs: list[tuple[int, int]], wanted: float
) -> None:
    """The returned flag is true exactly when the recall is reached, and the threshold is one a robot can use."""
    labels = np.array([label for label, _ in pairs])
    p_blocked = np.array([score for _, score in pairs]) / 20
    threshold, reached = metrics.choose_threshold(labels, p_blocked, wanted)
    assert 0 < threshold < 1
    recall = metrics.recall(labels, metrics.decided(p_blocked, threshold), metrics.BLOCKED)
    assert reached == (recall >= wanted)


def test_of_the_thresholds_that_reach_the_recall_the_most_accurate_is_taken() -> None:
    """Recall first, then balanced accuracy: not simply the lowest threshold."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    p_blocked = np.array([0.9, 0.8, 0.7, 0.3, 0.35, 0.2, 0.1, 0.05])
    assert metrics.choose_threshold(labels, p_blocked, 0.75) == (0.5, True)  # of equal ones the middle
    threshold, reached = metrics.choose_threshold(labels, p_blocked, 1.0)
    assert reached
    assert 0.2 < threshold < 0.3


def test_a_hopeless_image_does_not_make_a_robot_call_everything_blocked() -> None:
    """A recall that only a threshold near zero would reach is not reached, and that is said."""
    labels = np.array([0, 0, 1, 1])
    p_blocked = np.array([0.9, 0.001, 0.2, 0.1])
    threshold, reached = metrics.choose_threshold(labels, p_blocked, 1.0)
    assert not reached
    assert threshold >= 0.02


def test_calibration_finds_the_temperature_that_was_put_in() -> None:
    """Logits that are three times too sure get a temperature near three."""
    generator = np.random.default_rng(0)
    margin = generator.normal(0, 2, 4000)
    labels = np.where(generator.random(4000) < 1 / (1 + np.exp(-margin)), metrics.BLOCKED, metrics.FREE)
    logits = np.stack([3 * margin, np.zeros_like(margin)], axis=1)
    found = metrics.best_temperature(labels, logits)
    assert found == pytest.approx(3.0, rel=0.15)
    before = metrics.calibration_error(labels, metrics.probabilities(logits))
    assert metrics.calibration_error(labels, metrics.probabilities(logits, found)) < before / 2


def test_one_class_alone_has_no_area_and_no_error() -> None:
    """What cannot be measured is not a number, rather than a number that looks good."""
    labels = np.zeros(3, dtype=int)
    assert np.isnan(metrics.roc_auc(labels, np.array([0.1, 0.5, 0.9])))
    assert np.isnan(metrics.recall(labels, labels, metrics.FREE))


def test_the_bins_of_the_calibration_error_hold_as_many_images_each() -> None:
    """Ten bins by rank, wherever the probabilities lie; few images make few bins; equal ones stay together."""
    crowded = np.linspace(0, 1, 1000) ** 8
    assert np.bincount(metrics.equal_mass_bins(crowded)).tolist() == [100] * 10
    assert set(metrics.equal_mass_bins(np.linspace(0, 1, 25))) == {0, 1}
    assert len(set(metrics.equal_mass_bins(np.full(500, 0.3)))) == 1
    assert metrics.calibration_error(np.array([0] * 3 + [1] * 7), np.full(10, 0.5)) == pytest.approx(0.2)


def drawn(images: int, groups: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and probabilities of a middling network, and groups whose images are copies of one view."""
    generator = np.random.default_rng(seed)
    labels, margin = generator.integers(0, 2, groups), generator.normal(0, 2, groups)
    p_blocked = metrics.probabilities(np.stack([margin + 1.5 - 3 * labels, np.zeros(groups)], axis=1))
    group = generator.integers(0, groups, images)
    return labels[group], p_blocked[group], group


def test_the_intervals_hold_what_they_promise() -> None:
    """In about 95 of 100 repetitions the interval of the area under the curve, and of the recall, holds the truth."""
    truth = metrics.measure(*drawn(400_000, 400_000)[:2], 0.5)
    held = {"roc_auc": 0, "blocked_recall": 0, "balanced_accuracy": 0}
    for seed in range(100):
        found = intervals.summary(*drawn(240, 80, seed)[:2], 0.5, drawn(240, 80, seed)[2].tolist())
        for name in held:
            held[name] += found[f"{name}_low"] <= truth[name] <= found[f"{name}_high"]
    assert all(count >= 88 for count in held.values()), held


def test_frames_of_one_view_are_one_piece_of_evidence() -> None:
    """By image the interval would be half as wide as by view, and false."""
    labels, p_blocked, group = drawn(1000, 100)
    by_view = intervals.summary(labels, p_blocked, 0.5, group.tolist())
    by_image = intervals.summary(labels, p_blocked, 0.5, list(range(1000)))
    widths = [found["balanced_accuracy_high"] - found["balanced_accuracy_low"] for found in (by_view, by_image)]
    assert widths[0] > 2 * widths[1]
    assert by_view["groups"] == 100 - len(set(range(100)) - set(group))


@settings(max_examples=40, deadline=None)
@given(scored, st.integers(1, 5), st.floats(0.05, 0.95))
def test_every_interval_holds_its_metric(pairs: list[tuple[int, int]], groups: int, threshold: float) -> None:
    """For any answers and any groups, and the same seed gives the same; one view alone promises nothing."""
    labels = np.array([label for label, _ in pairs])
    p_blocked = np.array([score for _, score in pairs]) / 20
    group = [index % groups for index in range(len(pairs))]
    found = intervals.summary(labels, p_blocked, threshold, group)
    for name, value in metrics.measure(labels, p_blocked, threshold).items():
        assert found[name] == value
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert np.isnan(low) == np.isnan(high)
        assert np.isnan(low) or 0 <= low <= value <= high <= 1
    np.testing.assert_equal(found, intervals.summary(labels, p_blocked, threshold, group))
    if groups == 1:
        assert np.isnan(found["roc_auc_low"])


def test_five_of_five_are_no_certainty() -> None:
    """Without a mistake there is nothing to resample, and the interval still gets wider with fewer views."""
    lows = []
    for views in (5, 50):
        labels = np.repeat([0, 1], views)
        found = intervals.summary(labels, 1.0 - labels, 0.5, list(range(2 * views)))
        assert found["blocked_recall"] == found["blocked_recall_high"] == 1.0
        assert np.isnan(found["roc_auc_low"])  # an area without a mistake has no such remedy
        lows.append(found["blocked_recall_low"])
    assert 0.5 < lows[0] < 0.7
    assert 0.93 < lows[1] < 0.97


def test_the_mean_over_sources_counts_each_the_same() -> None:
    """A large source must not hide a small one; each image keeps the threshold of its fold."""
    large, small = drawn(900, 300, 1), drawn(60, 20, 2)
    labels, p_blocked, group = (np.concatenate(pair) for pair in zip(large, small, strict=True))
    source = np.repeat(["large", "small"], [900, 60])
    threshold = np.repeat([0.5, 0.3], [900, 60])
    names = [f"{one}/{other}" for one, other in zip(source, group, strict=True)]
    found = intervals.mean_summary(labels, p_blocked, threshold, names, source.tolist())
    each = [metrics.measure(*large[:2], 0.5), metrics.measure(*small[:2], 0.3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean([one["balanced_accuracy"] for one in each]))
    alone = intervals.summary(*large[:2], 0.5, large[2].tolist())
    assert found["roc_auc_high"] - found["roc_auc_low"] > alone["roc_auc_high"] - alone["roc_auc_low"]
    assert found["images"] == 960


@pytest.mark.alone
def test_two_thousand_resamples_of_twenty_thousand_images_take_moments() -> None:
    """Well under two seconds: an evaluation of 100,000 images does not wait for its intervals."""
    labels, p_blocked, group = drawn(20_000, 8_000)
    began = time.perf_counter()
    intervals.summary(labels, p_blocked, 0.5, group.tolist())
    assert time.perf_counter() - began < 2
