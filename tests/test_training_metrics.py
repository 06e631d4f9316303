"""The metrics in numpy, against scikit-learn where it has them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import metrics

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
