"""How much each image counts in the loss: by its class and its source, so that none learns what a place is like.

Where one person has collected more `free` than `blocked` and another the reverse, a network could tell the label by
the floor. Here each class of each real source counts the same, and so does each class of the simulated images, which
are one source in this.
"""

from typing import Sequence

import numpy as np

from training.dataset import Row

# A few images of a class among hundreds, some of them perhaps mislabelled, do not count like those hundreds.
MOST = 5.0  # times as much as an image would count if all cells were of one size


def is_simulated(rows: Sequence[Row], count: int) -> np.ndarray:
    """(N,) bool: which were never before a camera; `count` images that nothing is told of were."""
    return np.array([row.simulated for row in rows] or [False] * count, dtype=bool)


def image_weights(rows: Sequence[Row], labels: np.ndarray) -> np.ndarray:
    """(N,) float64 weights, of mean one over the real images and over the simulated ones.

    Args:
        rows: of the images; none where nothing is told of them, which then are of one source.
        labels: (N,) of the images.
    """
    simulated = is_simulated(rows, len(labels))
    source = np.array([row.source for row in rows] or [""] * len(labels), dtype=object)
    source[simulated] = ""
    weights = np.ones(len(labels))
    for kind in (simulated, ~simulated):
        if kind.any():
            cells = [f"{label} {name}" for label, name in zip(labels[kind], source[kind])]  # noqa: B905 (Python 3.8)
            _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
            own = 1.0 / np.maximum(counts, counts.mean() / MOST)[cell]
            weights[kind] = own / own.mean()
    return weights
