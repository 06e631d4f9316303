"""How much each image counts: by class and source, and never without bounds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.dataset import Row
from training.weighting import MOST, image_weights, is_simulated

LABELS = ("blocked", "free")


def rows(cells: "list[tuple[str, int, bool]]") -> "tuple[list[Row], np.ndarray]":
    """Images of (source, label, whether simulated)."""
    found = [
        Row(f"s/{LABELS[label]}/{number}.jpg", LABELS[label], "s", source, str(number), "train", simulated)
        for number, (source, label, simulated) in enumerate(cells)
    ]
    return found, np.array([label for _, label, _ in cells])


def test_each_class_of_each_source_counts_the_same() -> None:
    """Of real images by source, of simulated ones together; and each kind has as much weight as images."""
    cells = [("lab", 0, False)] * 6 + [("lab", 1, False)] * 3 + [("home", 0, False)] * 3 + [("home", 1, False)] * 4
    cells += [("arena-1", 0, True)] * 2 + [("arena-2", 0, True)] * 2 + [("arena-2", 1, True)] * 6
    weights = image_weights(*rows(cells))
    real = [
        sum(w for w, cell in zip(weights, cells, strict=True) if cell == kind) for kind in dict.fromkeys(cells[:16])
    ]
    simulated = [sum(w for w, c in zip(weights, cells, strict=True) if c[2] and c[1] == label) for label in (0, 1)]
    assert np.allclose(real, 16 / 4)
    assert np.allclose(simulated, 10 / 2)


def test_images_that_nothing_is_told_of_are_of_one_source() -> None:
    """The rarer class weighs more."""
    assert np.allclose(image_weights([], np.array([0, 1, 1, 1])), [2.0, 2 / 3, 2 / 3, 2 / 3])
    assert not is_simulated([], 4).any()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.booleans()), min_size=1, max_size=60))
def test_weights_are_bounded_and_of_mean_one(cells: "list[tuple[str, int, bool]]") -> None:
    """Whatever there is of each class and source: of either kind the mean is one, and no image outweighs many."""
    weights = image_weights(*rows(cells))
    simulated = np.array([cell[2] for cell in cells])
    for kind in (simulated, ~simulated):
        if kind.any():
            assert np.isclose(weights[kind].mean(), 1.0)
            assert weights[kind].max() <= MOST * len({cell[:2] for cell, own in zip(cells, kind, strict=True) if own})


def test_a_single_image_of_a_class_does_not_count_like_hundreds() -> None:
    """One blocked image of a source, perhaps mislabelled, among 300 others: a few times as much as one of those."""
    cells = [("lab", 0, False)] * 100 + [("lab", 1, False)] * 100 + [("home", 1, False)] * 100 + [("home", 0, False)]
    weights = image_weights(*rows(cells))
    assert weights[-1] < 8 * weights[0]
