"""Stage `split`: divides the images into train, validation and test.

Reads build/validate/images.csv and the block `split` of params.yaml. Writes build/split/split.csv (image, label,
session, source, group, part, simulated) and build/split/report.json.

Never by image: frames of one drive look alike, so a random split of frames flatters. By session, the test images come
from drives that training has not seen; by near-duplicate group, at least from views that it has not seen.
Simulated images beside real ones are all learned from: how a robot does in a real room is measured in real rooms.
"""

import json
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import pandas as pd

from pipelines.images_table import IMAGES_CSV, read_images, write_text
from pipelines.params import SplitParams, block
from serving.command_line import run
from serving.contracts.sessions import LABELS
from serving.errors import RejectedError

OUT = Path("build/split")
PARTS = ("train", "validation", "test")
COLUMNS = ["image", "label", "session", "source", "group", "part", "simulated"]
By = Literal["session", "group"]

# `auto` takes the split by session if no part has less than half or more than twice its share of the images.
_REASONABLE = (0.5, 2.0)
_LACKING = 1e9  # cost of a part without a class: more than any deviation from the shares


def split(images: pd.DataFrame, params: SplitParams) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Gives every readable image its part.

    Args:
        images: the table of the stage `validate`.

    Returns:
        The table of COLUMNS, ordered by image, and the report.

    Raises:
        RejectedError: a part would lack a class, whatever is put where.
    """
    readable = images[images["readable"]].sort_values("image", ignore_index=True)
    divided = ~readable["simulated"].to_numpy(dtype=bool)
    if not divided.any():
        divided[:] = True
    by, part, why = _choose(readable[divided], params)
    parts = np.full(len(readable), "train", dtype=object)
    parts[divided] = np.array(PARTS)[part]
    table = readable.assign(part=parts)[COLUMNS]
    report = {
        "by": by,
        "asked": params.by,
        "why": why,
        "unreadable_left_out": int(len(images) - len(readable)),
        "simulated_beside_real": int((~divided).sum()),
        "parts": {name: _describe(table[table["part"] == name], len(table)) for name in PARTS},
    }
    return table, report


def _choose(images: pd.DataFrame, params: SplitParams) -> tuple[By, np.ndarray, str]:
    """(how it is split, part of each image, why so)."""
    if params.by != "auto":
        part = _divide(images, params.by, params)
        _refuse_lacking(images, params.by, part)
        return params.by, part, "split.by asks for it"
    part = _divide(images, "session", params)
    problem = _lacking(images, part) or _unreasonable(part, params)
    if not problem:
        return "session", part, "by session every part has both classes and about its share"
    part = _divide(images, "group", params)
    _refuse_lacking(images, "group", part)
    return "group", part, f"not by session, because {problem}: test images come from drives that training has seen"


def _divide(images: pd.DataFrame, by: By, params: SplitParams) -> np.ndarray:
    """Index into PARTS of every image; images of one unit get the same."""
    unit = _units(images, by)
    counts = np.zeros((unit.max() + 1 if len(unit) else 0, len(LABELS)), dtype=np.int64)
    np.add.at(counts, (unit, images["label"].map(LABELS.index).to_numpy(dtype=np.int64)), 1)
    shares = (1 - params.validation - params.test, params.validation, params.test)
    return np.asarray(assign(counts, shares, params.seed)[unit])


def _units(images: pd.DataFrame, by: By) -> np.ndarray:
    """(N,) what must stay together: a near-duplicate group, or sessions with all that share a group with them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group = pd.factorize(images["group"])[0]
    if by == "group":
        return np.asarray(group)
    session, sessions = pd.factorize(images["session"])
    nodes = len(sessions) + (group.max() + 1 if len(group) else 0)
    edges = coo_array((np.ones(len(images), dtype=bool), (session, group + len(sessions))), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return np.asarray(pd.factorize(component[session])[0])


def assign(counts: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Puts units into parts so that every part has every class, and each class is divided as the shares ask.

    Random starts from the seed, each improved by the best move of one unit until none improves; the best end is taken.

    Args:
        counts: (U, C) images of each class in each unit.
        shares: of the parts; add up to 1.

    Returns:
        (U,) part of each unit. A part may lack a class where there are too few units.
    """
    if not len(counts):
        return np.empty(0, dtype=np.int64)
    generator = np.random.default_rng(seed)
    wanted = np.outer(shares, counts.sum(axis=0))  # (P, C)
    starts = 40 if len(counts) <= 500 else 4
    best, best_cost = np.empty(0, dtype=np.int64), np.inf
    for _ in range(starts):
        part = _improve(generator.choice(len(shares), size=len(counts), p=shares), counts, wanted)
        cost = _cost(_held(part, counts, len(shares)), wanted).sum()
        if cost < best_cost - 1e-9:
            best, best_cost = part, cost
    return best


def _improve(part: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    units = np.arange(len(counts))
    while True:
        held = _held(part, counts, len(wanted))
        now = _cost(held, wanted)  # (P,)
        joined = _cost(held[None] + counts[:, None], wanted) - now  # (U, P): what a unit costs where it comes
        left = (_cost(held[part] - counts, wanted[part]) - now[part])[:, None]  # (U, 1): and gains where it goes
        change = joined + left
        change[units, part] = 0.0
        unit, to = np.unravel_index(np.argmin(change), change.shape)
        if change[unit, to] > -1e-9:
            return part
        part[unit] = to


def _held(part: np.ndarray, counts: np.ndarray, parts: int) -> np.ndarray:
    held = np.zeros((parts, counts.shape[1]), dtype=np.int64)
    np.add.at(held, part, counts)
    return held


def _cost(held: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Squared deviation relative to what is wanted, over the classes (last axis), and much more for a lacking class."""
    deviation = (held - wanted) ** 2 / np.maximum(wanted, 1e-9)
    return np.asarray(np.where(held > 0, deviation, deviation + _LACKING).sum(axis=-1))


def _lacking(images: pd.DataFrame, part: np.ndarray) -> str:
    """What is lacking, in words; empty if every part has both classes."""
    for index, name in enumerate(PARTS):
        for label in LABELS:
            if not ((part == index) & (images["label"] == label).to_numpy()).any():
                return f"part `{name}` would have no `{label}` image"
    return ""


def _unreasonable(part: np.ndarray, params: SplitParams) -> str:
    asked = (1 - params.validation - params.test, params.validation, params.test)
    for index, (name, share) in enumerate(zip(PARTS, asked, strict=True)):
        has = float((part == index).mean())
        if not _REASONABLE[0] * share <= has <= _REASONABLE[1] * share:
            return f"part `{name}` would have {has:.0%} of the images instead of {share:.0%}"
    return ""


def _refuse_lacking(images: pd.DataFrame, by: By, part: np.ndarray) -> None:
    problem = _lacking(images, part)
    if not problem:
        return
    units = images.assign(unit=_units(images, by)).groupby("label")["unit"].nunique()
    held = " and ".join(f"{label} in {units.get(label, 0)}" for label in LABELS)
    what, remedy = {
        "session": ("sessions without shared views", "collect more sessions, or set split.by: group"),
        "group": ("different views", "collect more images of different views"),
    }[by]
    raise RejectedError(
        f"{problem}: there is {held} {what}, and each of the {len(PARTS)} parts needs its own; {remedy}"
    )


def _describe(part: pd.DataFrame, total: int) -> dict[str, Any]:
    return {
        "images": len(part),
        "share": round(len(part) / total, 4),
        **{label: int((part["label"] == label).sum()) for label in LABELS},
        "groups": int(part["group"].nunique()),
        "sessions": sorted(part["session"].unique()),
        "sources": sorted(part["source"].unique()),
    }


def write(table: pd.DataFrame, report: dict[str, Any], out: Path) -> None:
    write_text(out / "split.csv", table.to_csv(index=False))
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")


@click.command()
def command() -> None:
    """Stage `split`: divide the images of build/validate/images.csv as the block `split` of params.yaml says.

    Writes build/split/split.csv and build/split/report.json.

    \b
    Example:
      dvc repro split
    """
    params = block(SplitParams)
    table, report = split(read_images(IMAGES_CSV), params)
    write(table, report, OUT)
    click.echo(f"split by {report['by']}: {report['why']}")
    for name, part in report["parts"].items():
        counts = ", ".join(f"{part[label]} {label}" for label in LABELS)
        click.echo(f"  {name:<10} {part['images']:>6} images ({part['share']:.0%}): {counts}")
    if report["simulated_beside_real"]:
        click.echo(f"  {report['simulated_beside_real']} simulated images among them are all in train")
    if report["unreadable_left_out"]:
        click.echo(f"  {report['unreadable_left_out']} images that cannot be decoded are in no part")


if __name__ == "__main__":
    run(command)
