"""Things: the outline that each kind shows to the camera, and what is painted on it.

An outline is how high a thing is at each place across its width, as a share of its height; a roundness below one lets
its front slope back towards its middle. So shoes, bottles and toys need no meshes. Pictures have rows from the floor to
the thing's top and columns along its surface.
"""

import numpy as np

from simulator.room import Look
from simulator.textures import any_colour, clutter, smooth_noise, speckle, varied

ROWS = 128
COLUMNS = 128
OUTLINE = 32  # places across the width

_ACROSS = (np.arange(OUTLINE) + 0.5) / OUTLINE * 2 - 1  # -1..1
_ROUND = {
    Look.SHOE: 0.55, Look.BAG: 0.75, Look.TOY: 0.65, Look.BALL: 0.35, Look.SOFA: 0.85, Look.BOTTLE: 0.97,
    Look.PERSON: 1.0,
}  # fmt: skip


def roundness(look: Look) -> float:
    """Height of the front as a share of the height behind it: 1 for what has an edge."""
    return _ROUND.get(look, 1.0)


def outline(rng: np.random.Generator, look: Look) -> np.ndarray:
    """(OUTLINE,) float32 in 0..1."""
    high = np.ones(OUTLINE)
    if look == Look.BALL:
        high = np.sqrt(1 - _ACROSS**2)
    elif look == Look.BOTTLE:
        neck, shoulder = rng.uniform(0.3, 1.0), rng.uniform(0.6, 0.85)
        high = np.where(np.abs(_ACROSS) < neck, 1.0, shoulder)
    elif look == Look.SHOE:
        side = _ACROSS * (1 if rng.random() < 0.5 else -1)
        high = np.clip(0.62 + 0.4 * side, 0.35, 1.0) * (1 - 0.5 * np.abs(_ACROSS) ** 8)
    elif look in (Look.BAG, Look.TOY):
        lumps = smooth_noise(rng, 1, OUTLINE, int(rng.integers(4, 14)))[0]
        high = (0.35 + 0.75 * lumps) * (1 - 0.6 * np.abs(_ACROSS) ** int(rng.integers(2, 7)))
        high = high / high.max()
    elif look == Look.CARTON and rng.random() < 0.25:  # something with steps, not a box
        high = np.repeat(rng.uniform(0.4, 1.0, 8), OUTLINE // 8)
    return high.astype(np.float32)


def paint(rng: np.random.Generator, look: Look) -> np.ndarray:
    """(ROWS, COLUMNS, 3) float32 in 0..255."""
    picture = np.empty((ROWS, COLUMNS, 3), np.float32)
    picture[:] = any_colour(rng)
    if look == Look.CARTON:
        _box(rng, picture)
    elif look == Look.FLAT:
        _pad(rng, picture)
    elif look == Look.SHOE:
        picture *= (0.8 + 0.4 * smooth_noise(rng, ROWS, COLUMNS, 20))[..., None]
        picture[: int(rng.integers(10, 40))] = any_colour(rng)
    elif look in (Look.BAG, Look.TOY):
        _soft(rng, picture, parts=int(rng.integers(0, 9)))
    elif look in (Look.BOTTLE, Look.CUP, Look.BIN):
        _vessel(rng, picture)
    elif look == Look.LEG:
        picture[:] = varied(rng, ((36, 36, 38), (150, 150, 152), (150, 110, 70), (226, 224, 220))[rng.integers(4)], 12)
    elif look == Look.PERSON:
        picture[:] = varied(rng, ((44, 56, 84), (30, 30, 34), (90, 86, 80), (90, 104, 130))[rng.integers(4)], 12)
        picture *= (0.7 + 0.5 * smooth_noise(rng, ROWS, COLUMNS, 16))[..., None]
        picture[: int(rng.integers(8, 14))] = any_colour(rng)  # the shoe
    elif look == Look.CUPBOARD:
        _cupboard(rng, picture)
    elif look == Look.SOFA:
        picture *= (0.75 + 0.5 * smooth_noise(rng, ROWS, COLUMNS, 24))[..., None]
        picture[: int(rng.integers(6, 40))] = 16  # the hollow below
    return _shaded(rng, picture)


def _shaded(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Darker towards the floor, uneven, with a little grain."""
    foot = 1.0 - rng.uniform(0.2, 0.5) * np.exp(-np.arange(ROWS) / rng.uniform(6.0, 30.0))
    picture *= foot.astype(np.float32)[:, None, None]
    picture *= (0.88 + 0.24 * smooth_noise(rng, ROWS, COLUMNS, 40))[..., None]
    picture *= speckle(rng, ROWS, COLUMNS, 0.02)[..., None]
    return picture


def _print(rng: np.random.Generator, picture: np.ndarray, lines: int) -> None:
    """Bars as far-off writing has them."""
    ink = any_colour(rng)
    for _ in range(lines):
        row, column = int(rng.integers(0, ROWS - 8)), int(rng.integers(0, COLUMNS - 20))
        picture[row : row + int(rng.integers(2, 9)), column : column + int(rng.integers(10, 70))] = ink


def _box(rng: np.random.Generator, picture: np.ndarray) -> None:
    chance = rng.random()
    if chance < 0.3:  # cardboard
        picture[:] = varied(rng, (176, 132, 88), 12)
        picture[:, 58:70] = varied(rng, (190, 160, 120), 12)
    elif chance < 0.45:  # an appliance, a machine
        picture[:] = clutter(rng, ROWS, COLUMNS, int(rng.integers(10, 50)), 0.6)
    if rng.random() < 0.6:
        _print(rng, picture, int(rng.integers(1, 10)))
    picture[-2:] *= np.float32(1.2)  # the upper edge catches the light


def _pad(rng: np.random.Generator, picture: np.ndarray) -> None:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    if rng.random() < 0.5:
        centre, size = rng.uniform(30, 98, 2), rng.uniform(12, 40)
        picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < size**2] = any_colour(rng)
    if rng.random() < 0.4:
        _print(rng, picture, int(rng.integers(1, 8)))
    if rng.random() < 0.3:
        picture[x + y < int(rng.integers(60, 160))] = any_colour(rng)


def _soft(rng: np.random.Generator, picture: np.ndarray, parts: int) -> None:
    for _ in range(parts):
        patch = smooth_noise(rng, ROWS, COLUMNS, int(rng.integers(20, 60))) > rng.uniform(0.6, 0.9)
        picture[patch] = any_colour(rng)
    picture *= (0.65 + 0.7 * smooth_noise(rng, ROWS, COLUMNS, int(rng.integers(6, 40))))[..., None]


def _vessel(rng: np.random.Generator, picture: np.ndarray) -> None:
    bands = np.sort(rng.integers(0, ROWS, int(rng.integers(0, 5))))
    for band in bands:
        picture[band:] = any_colour(rng)
    if rng.random() < 0.4:
        _print(rng, picture, int(rng.integers(2, 8)))
    if rng.random() < 0.5:  # gloss
        column = int(rng.integers(0, COLUMNS - 10))
        picture[:, column : column + int(rng.integers(2, 8))] += 60


def _cupboard(rng: np.random.Generator, picture: np.ndarray) -> None:
    if rng.random() < 0.4:
        picture[:] = clutter(rng, ROWS, COLUMNS, int(rng.integers(10, 50)), 0.7)
        picture[:: int(rng.integers(20, 50))] = any_colour(rng)
    else:
        picture[:] = varied(rng, ((150, 108, 72), (96, 66, 46), (228, 226, 222), (160, 164, 168))[rng.integers(4)], 12)
        picture[:: int(rng.integers(24, 80))] *= np.float32(0.6)
        picture[:, :: int(rng.integers(40, 90))] *= np.float32(0.6)
    if rng.random() < 0.6:
        picture[: int(rng.integers(5, 20))] *= np.float32(0.4)  # the kick board
