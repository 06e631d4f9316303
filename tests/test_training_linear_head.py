"""The last layer by penalised logistic regression, on features drawn by lot."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from serving.errors import RejectedError  # noqa: E402
from training import linear_head  # noqa: E402
from training.weighting import image_weights  # noqa: E402


def fitted(features: np.ndarray, labels: np.ndarray, epochs: int = 3) -> "tuple[np.ndarray, np.ndarray]":
    """Weights and biases of a head that was fitted to the features as its only view."""
    head = torch.nn.Linear(features.shape[1], 2)
    list(linear_head.fit(head, [features.astype(np.float32)], labels, image_weights([], labels), epochs))
    return head.weight.detach().numpy(), head.bias.detach().numpy()


def drawn(count: int, dimensions: int = 30, seed: int = 1) -> "tuple[np.ndarray, np.ndarray]":
    """Two clouds whose first coordinates differ, far from the origin."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = generator.normal(5.0, 1.0, (count, dimensions))
    features[:, 0] += 3.0 * labels
    return features, labels


def test_it_is_the_logistic_regression_of_scikit_learn() -> None:
    """The same penalty gives the same logits as another implementation of the same convex problem."""
    from sklearn.linear_model import LogisticRegression

    features, labels = drawn(200)
    weight, bias = fitted(features, labels)
    variance = ((features - features.mean(0)) ** 2).sum(1).mean()
    # The difference of two logits, each penalised, is one logit with half of the penalty.
    strength = 1.0 / (len(labels) * linear_head.PENALTY * variance / 2)
    other = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(features, labels)
    assert np.allclose(weight[1] - weight[0], other.coef_[0], atol=1e-4)
    assert np.isclose(bias[1] - bias[0], other.intercept_[0], atol=1e-3)


def test_the_scale_of_the_features_does_not_matter() -> None:
    """Features ten times as large give the same answers: backbones differ in that."""
    features, labels = drawn(100)
    (weight, bias), (larger_weight, larger_bias) = fitted(features, labels), fitted(10 * features, labels)
    assert np.allclose(features @ weight.T + bias, 10 * features @ larger_weight.T + larger_bias, atol=1e-3)


def test_a_feature_that_is_no_number_is_refused() -> None:
    """Broken weights of a backbone end the training with a message, not with a head of NaN."""
    features, labels = drawn(20)
    features[3, 3] = np.nan
    with pytest.raises(RejectedError, match="last layer became nan"):
        fitted(features, labels)
