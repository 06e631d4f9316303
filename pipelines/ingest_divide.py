"""Divides what a person hands in into parts that are ingested as sessions of their own.

For a set that was collected over a time but came as one zip. Near-duplicates stay together, so that no later split by
session can put one view on both sides.
"""

import contextlib
from pathlib import Path

import numpy as np

from pipelines.images_facts import measure, near_duplicates
from pipelines.ingest_collect import check, load
from pipelines.ingest_report import progress
from pipelines.ingest_sources import open_source
from pipelines.split import assign
from serving.contracts.sessions import LABELS
from serving.errors import RejectedError


def divide(path: Path, shares: tuple[float, ...], *, resize: bool = False, seed: int = 1) -> list[frozenset[str]]:
    """Says which files of `path` go into which part; `ingest(path, into, part=(1, 2))` takes one.

    Every part gets both classes. What cannot be taken is in the first part, so that its ingest names it.

    Args:
        path: a session zip, a notebook's dataset.zip, or a folder.
        shares: of the images in each part; add up to 1.
        resize: as for `ingest`.
        seed: the same seed divides the same way.

    Returns:
        Paths inside `path`, one set for each share; together all files.

    Raises:
        OperatorError: there is nothing at `path`.
        RejectedError: it cannot be read, or is too small to give every part both classes.
    """
    with contextlib.closing(open_source(path)) as source:
        images = check(source, progress(source.files), resize).images
        hashes = [measure(load(source, image, resize).data).dhash for image in images]
        group = near_duplicates(hashes, [image.label for image in images]).group
        counts = np.zeros((int(group.max(initial=-1)) + 1, len(LABELS)), dtype=np.int64)
        label = np.array([LABELS.index(image.label) for image in images], dtype=np.int64)
        np.add.at(counts, (group, label), 1)
        part_of_group = assign(counts, shares, seed)
        _refuse_lacking(path, counts, part_of_group, len(shares))
        part_of = {image.file.path: int(part_of_group[group[i]]) for i, image in enumerate(images)}
        return [
            frozenset(file.path for file in source.files if part_of.get(file.path, 0) == part)
            for part in range(len(shares))
        ]


def _refuse_lacking(path: Path, counts: np.ndarray, part: np.ndarray, parts: int) -> None:
    for column, label in enumerate(LABELS):
        if len(set(part[counts[:, column] > 0])) < parts:
            views = int((counts[:, column] > 0).sum())
            raise RejectedError(
                f"{path}: {views} different views of `{label}` cannot be divided into {parts} sessions; "
                "hand it in as one, or collect more"
            )
