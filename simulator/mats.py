"""Printed mats and sheets of paper: roads with edges and dashes, arrows, coloured signs. All of it is free floor.

The Jetbot's road-following kits are such mats; a network that has not seen any takes a dark road for a thing.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from simulator.textures import FLOOR_TEXELS_PER_M, any_colour, varied

Path = np.ndarray  # (points, 2) float64, m: the middle of a road, from one end to the other

_FINE = 2  # drawn this much finer, then shrunk: edges are smooth
_SCALE = FLOOR_TEXELS_PER_M * _FINE
_STEP_M = 0.05  # between the points of a path
_PAPER, _LINE = (232, 232, 230), (232, 232, 228)


def with_mat(rng: np.random.Generator, floor: np.ndarray) -> tuple[np.ndarray, list[Path]]:
    """A floor with a mat on all or a part of it, and its roads.

    Args:
        rng: of the room's looks.
        floor: (rows, columns, 3) float32 in 0..255; not changed.
    """
    rows, columns = floor.shape[:2]
    mat = Image.new("RGB", (columns * _FINE, rows * _FINE), _shade(rng, _PAPER, 8))
    pen = ImageDraw.Draw(mat)
    dark = _shade(rng, (44, 44, 46), 10)
    width_m = float(rng.uniform(0.10, 0.32))  # from a toy's road to one that a Jetbot drives on
    outlined = rng.random() < 0.4  # two dark lines with white between them, rather than a dark road
    roads = [
        curve(rng, columns / FLOOR_TEXELS_PER_M, rows / FLOOR_TEXELS_PER_M) for _ in range(int(rng.integers(2, 9)))
    ]
    for road in roads:
        _draw_road(rng, pen, road, width_m, dark, outlined)
    for _ in range(int(rng.integers(0, 14))):
        _draw_sign(rng, pen, mat.width, mat.height, dark)
    picture = np.asarray(mat.reduce(_FINE)).astype(np.float32)
    if rng.random() < 0.5:
        return picture, roads
    # A sheet that covers a part of the floor.
    cover = Image.new("L", (columns, rows))
    x, y = rng.uniform(0.2, 0.8) * columns, rng.uniform(0.2, 0.8) * rows
    reach = rng.uniform(0.6, 1.4, 4) * FLOOR_TEXELS_PER_M
    ImageDraw.Draw(cover).polygon([(x - reach[0], y), (x, y - reach[1]), (x + reach[2], y), (x, y + reach[3])], 255)
    covered = np.asarray(cover) > 0
    return np.where(covered[..., None], picture, floor), [part for road in roads for part in _inside(road, covered)]


def curve(rng: np.random.Generator, width_m: float, height_m: float) -> Path:
    """A path that bends, about across a floor."""
    x, y, heading = rng.uniform(0, width_m), rng.uniform(0, height_m), rng.uniform(0, 2 * math.pi)
    bend, path = 0.0, []
    for number in range(110):
        if number % 12 == 0:
            bend = float(rng.choice((0.0, rng.uniform(-0.2, 0.2))))
        heading += bend
        x, y = x + _STEP_M * math.cos(heading), y + _STEP_M * math.sin(heading)
        path.append((x, y))
    return np.array(path)


def _draw_road(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    road: Path,
    width_m: float,
    dark: tuple[int, ...],
    outlined: bool,
) -> None:
    path = [tuple(point) for point in road * _SCALE]

    def line(more_m: float, colour: tuple[int, ...]) -> None:
        pen.line(path, colour, round((width_m + more_m) * _SCALE), joint="curve")

    if outlined:
        line(float(rng.uniform(0.04, 0.14)), dark)
        line(0.0, _LINE)
        return
    for more_m, colour in ((0.06, _LINE), (0.04, dark), (0.02, _LINE), (0.0, dark)):
        line(more_m, colour)
    for start in range(0, len(path) - 2, 4):
        pen.line(path[start : start + 2], _LINE, round(0.010 * _SCALE))


def _draw_sign(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int, dark: tuple[int, ...]
) -> None:
    """An arrow, or a disc with a bar through it."""
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    size, angle = rng.uniform(0.03, 0.08) * _SCALE, float(rng.uniform(0, 2 * math.pi))
    cos, sin = math.cos(angle), math.sin(angle)
    if rng.random() < 0.5:
        outline = ((-2, -0.35), (0.6, -0.35), (0.6, -1), (2, 0), (0.6, 1), (0.6, 0.35), (-2, 0.35))
        pen.polygon([(x + size * (u * cos - v * sin), y + size * (u * sin + v * cos)) for u, v in outline], dark)
        return
    pen.ellipse((x - size, y - size, x + size, y + size), tuple(int(v) for v in any_colour(rng)))
    pen.line((x - size * cos, y - size * sin, x + size * cos, y + size * sin), _LINE, max(1, int(size / 3)))


def _inside(road: Path, covered: np.ndarray) -> list[Path]:
    """The parts of a road that lie where a sheet covers the floor, of three points at least."""
    column, row = (road * FLOOR_TEXELS_PER_M).astype(int).T
    rows, columns = covered.shape
    there = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    there[there] = covered[row[there], column[there]]
    parts = np.split(road, np.flatnonzero(np.diff(there)) + 1)
    first = bool(there[0])
    return [part for number, part in enumerate(parts) if (number % 2 == 0) == first and len(part) >= 3]


def _shade(rng: np.random.Generator, colour: tuple[int, int, int], spread: float) -> tuple[int, ...]:
    return tuple(int(v) for v in varied(rng, colour, spread))
