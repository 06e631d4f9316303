"""What the looks of floors, walls and things are painted with: colours, smooth noise, clutter, packing.

The same seed must give the same bytes on any machine: no float32 transcendental functions (their last bit depends on
the processor), and images are resized as 8-bit ones, which Pillow does in whole numbers.
"""

import numpy as np
from PIL import Image

FLOOR_TEXELS_PER_M = 240

# What people own, in sRGB: as often dark or grey as coloured.
COLOURS = (
    (30, 30, 34), (44, 44, 50), (24, 26, 30), (70, 72, 78), (110, 112, 116), (150, 150, 152), (206, 206, 202),
    (236, 236, 230), (176, 48, 42), (120, 30, 34), (38, 74, 150), (30, 50, 92), (70, 120, 170), (36, 110, 70),
    (120, 190, 60), (226, 186, 60), (222, 118, 40), (186, 116, 58), (128, 86, 52), (92, 60, 40), (166, 134, 96),
    (112, 62, 130), (60, 150, 158), (200, 130, 150), (230, 236, 170),
)  # fmt: skip


def any_colour(rng: np.random.Generator, spread: float = 12.0) -> np.ndarray:
    """(3,) float32: a colour that a thing may have."""
    return varied(rng, COLOURS[int(rng.integers(len(COLOURS)))], spread)


def varied(rng: np.random.Generator, colour: tuple[int, ...] | np.ndarray, spread: float) -> np.ndarray:
    """(3,) float32: lighter or darker, and a little off in hue."""
    found = np.asarray(colour, np.float64) * rng.uniform(0.85, 1.15) + rng.normal(0, spread / 2, 3)
    return np.clip(found, 6, 252).astype(np.float32)


def smooth_noise(
    rng: np.random.Generator, rows: int, columns: int, cell: int, row_cell: int | None = None
) -> np.ndarray:
    """(rows, columns) float32 in 0..1: random values every `cell` texels, smooth between."""
    coarse = rng.integers(0, 256, (rows // (row_cell or cell) + 2, columns // cell + 2), np.uint8)
    return upscaled(coarse, rows, columns)


def upscaled(grey: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32 in 0..1 from a smaller uint8 picture."""
    resized = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BICUBIC)
    return np.asarray(resized).astype(np.float32) / np.float32(255)


def speckle(rng: np.random.Generator, rows: int, columns: int, strength: float) -> np.ndarray:
    """(rows, columns) float32 around 1: grain without any smoothness."""
    grain = rng.integers(-64, 65, (rows, columns), np.int8).astype(np.float32)
    return np.float32(1) + grain * np.float32(strength / 37)


def clutter(rng: np.random.Generator, rows: int, columns: int, pieces: int, dark: float) -> np.ndarray:
    """(rows, columns, 3) float32: shelves, cables, bags, legs, as one sees them out of focus in a corner of a room."""
    picture = np.empty((rows, columns, 3), np.float32)
    picture[:] = varied(rng, (40, 38, 38), 8)
    for _ in range(pieces):
        tall = rng.random() < 0.4
        width = max(2, int(columns * rng.uniform(0.01, 0.05 if tall else 0.22)))
        height = max(2, int(rows * (rng.uniform(0.3, 1.0) if tall else rng.uniform(0.04, 0.3))))
        left, foot = int(rng.integers(columns - width + 1)), int(rng.integers(rows - height + 1))
        if rng.random() < 0.4:
            foot = 0
        bright = 1.0 if rng.random() < 0.25 else dark
        picture[foot : foot + height, left : left + width] = any_colour(rng) * np.float32(bright)
    return picture


def pack(colours: np.ndarray) -> np.ndarray:
    """(..., 3) colours in 0..255 to (...) uint32 RGBX: one lookup of four bytes is much cheaper than three of one."""
    out = np.zeros((*colours.shape[:-1], 4), np.uint8)
    out[..., :3] = np.clip(colours, 0, 255)
    return out.view(np.uint32)[..., 0]
