"""The index of training images that `jetloop trace --frame` and the console search, as an artifact of the run.

Made by the stage register, after the version: what it is and how it is searched is in telemetry/nearest.py.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.int8 import spread
from telemetry import nearest
from training.dataset import load, read_split
from training.tracking import Run, reaching, tracking_uri

SPLIT_FILE = Path("build/split/split.csv")


def add_index(tracked: Run, model: Path, sessions: Path, split: Path = SPLIT_FILE) -> int:
    """Logs the index of the part `train` to the run, unless the run has it; how many images are in it.

    Args:
        tracked: the run.
        model: model.onnx as it was exported.
        sessions: folder of the session zips.
        split: which images the network was trained on.

    Raises:
        OperatorError: MLflow does not answer, or a session cannot be read.
        RejectedError: an image is damaged.
    """
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    tag = f"nearest.{digest[:16]}"
    with reaching(tracking_uri()):
        if tag in tracked.client.get_run(tracked.id).data.tags:
            return 0
    index = make_index(model.read_bytes(), sessions, split)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / nearest.FILE
        nearest.write(index, path)
        tracked.artifact(path, nearest.FOLDER)
    tracked.tags({tag: f"{nearest.FOLDER}/{nearest.FILE}"})
    return len(index.images)


def make_index(model: bytes, sessions: Path, split: Path = SPLIT_FILE) -> nearest.Index:
    """Features and thumbnails of at most `nearest.MAX_IMAGES` training images, spread over sessions and labels."""
    rows = read_split(split)["train"]
    images = load(spread(rows, nearest.MAX_IMAGES), sessions, "indexing training images")

    def frames() -> Iterator[np.ndarray]:
        yield from (images.pixels[at] for at in range(len(images.rows)))

    return nearest.Index(
        images=[row.image for row in images.rows],
        features=np.stack(list(nearest.features(model, frames()))),
        thumbnails=[nearest.thumbnail(frame) for frame in frames()],
        trained=len(rows),
        sessions=sessions.as_posix(),
        onnx_sha256=hashlib.sha256(model).hexdigest(),
    )
