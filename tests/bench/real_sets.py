"""Real images for the benchmarks of training, as folders, and simulated ones to go with them.

A folder of sets holds one folder a set, called SOURCE_anything, with blocked/ and free/ in it.
"""

from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from training.dataset import Row
from training.settings import TrainSettings

SAFETY_DISTANCE_M = 0.35  # of simulated images: params.yaml's
AVERAGED = 4  # fine-tunings of the recipe
EPOCHS = 12  # of all of them together


class Picture(NamedTuple):
    path: Path
    label: int
    source: str
    set: str


def recipe(weights: Path, epochs: int = EPOCHS, averaged: int = AVERAGED) -> TrainSettings:
    """What docs/training.md recommends for real images and pretrained weights; the backbone is that of the weights."""
    from training.model import backbone_of

    return TrainSettings(
        backbone=backbone_of(weights),
        weights=str(weights),
        finetune="blocks",
        averaged=averaged,
        resolution=112,
        epochs=epochs,
        learning_rate=0.0005,
    )


def find(data: Path) -> List[Picture]:
    """Every image of every set.

    Raises:
        OperatorError: there is none.
    """
    found = [
        Picture(path, label, folder.name.partition("_")[0], folder.name)
        for folder in sorted(data.iterdir())
        for label, name in enumerate(LABELS)
        for path in sorted((folder / name).glob("*.jpg"))
    ]
    if not found:
        raise OperatorError(f"{data} holds no SET/blocked/*.jpg and SET/free/*.jpg")
    return found


def decode(pictures: Sequence[Picture]) -> Tuple[np.ndarray, np.ndarray]:
    """(N, 224, 224, 3) uint8 and (N,) labels."""
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(picture.path).convert("RGB").resize((224, 224))) for picture in pictures])
    return pixels, np.array([picture.label for picture in pictures], dtype=np.int64)


def rows_of(pictures: Sequence[Picture]) -> List[Row]:
    """As lines of split.csv: the set stands for the session, groups are near-duplicates as in `validate`."""
    from PIL import Image

    from pipelines.images_facts import difference_hash, near_duplicates

    labels = [LABELS[one.label] for one in pictures]
    groups = near_duplicates([difference_hash(Image.open(one.path).convert("L")) for one in pictures], labels).group
    return [
        Row(str(one.path), label, one.set, one.source, str(group), "train")
        for one, label, group in zip(pictures, labels, groups, strict=True)
    ]


def simulate(rooms: int, images: int, progress: Callable[[int], None] = lambda _: None) -> Tuple[List[Row], np.ndarray]:
    """Simulated frames, `images` of each of `rooms` rooms: what `jetloop simulate sessions` would write.

    Args:
        progress: called after each room with how many there are.
    """
    from simulator.arena import Arena
    from simulator.sessions import frames

    rows, pixels = [], np.empty((rooms * images, 224, 224, 3), np.uint8)
    for seed in range(1, rooms + 1):
        for label, frame in frames(Arena(seed), images, SAFETY_DISTANCE_M):
            pixels[len(rows)] = frame
            name = f"arena-{seed}"
            rows.append(Row(f"{name}/{label}/{len(rows)}.jpg", label, name, "arena", str(len(rows)), "train", True))
        progress(seed)
    return rows, pixels


def accuracy_line(figures: Dict[str, float]) -> str:
    """What a benchmark tells of a training as it goes."""
    return (
        f"balanced accuracy {figures['balanced_accuracy']:.3f}, blocked recall {figures['blocked_recall']:.3f}, "
        f"AUC {figures['roc_auc']:.3f}"
    )
