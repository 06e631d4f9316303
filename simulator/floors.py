"""Floors: carpet, wood, tiles, stone, with the light and the shadows that fall on them. Printed mats are in mats.py.

A floor is painted once per room, from above; rows run along y, columns along x.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from simulator.mats import Path, curve, with_mat
from simulator.room import Box, Cylinder, Room
from simulator.textures import FLOOR_TEXELS_PER_M, any_colour, smooth_noise, speckle, upscaled, varied

_LIGHT_CELL_M = 0.02
_SHADOW_STEPS = 4  # copies of a footprint, from its foot to the end of its shadow

_WOODS = ((186, 152, 116), (166, 130, 96), (200, 172, 138), (128, 88, 58), (96, 64, 44), (178, 160, 140))
_CARPETS = ((168, 156, 146), (150, 146, 142), (186, 176, 164), (120, 116, 114), (90, 92, 100), (140, 120, 100))
_STONES = ((190, 188, 180), (160, 160, 158), (206, 200, 188), (130, 132, 134), (176, 166, 150), (226, 224, 218))


def paint(rng: np.random.Generator, room: Room, sun: np.ndarray) -> tuple[np.ndarray, list[Path]]:
    """(rows, columns, 3) float32 in 0..255: the floor of a room under its light; and the roads printed on it.

    Args:
        rng: of the room's looks.
        room: what stands on the floor.
        sun: (2,) the horizontal direction towards the light, times its strength in 0..1.
    """
    rows, columns = (math.ceil(side * FLOOR_TEXELS_PER_M) for side in (room.depth_m, room.width_m))
    kinds: tuple[Callable[..., np.ndarray], ...] = (_wood, _carpet, _tiles, _stone)
    floor = kinds[int(rng.choice(4, p=(0.32, 0.28, 0.16, 0.24)))](rng, rows, columns)
    roads: list[Path] = []
    chance = rng.random()
    if chance < 0.42:
        floor, roads = with_mat(rng, floor)
    elif chance < 0.55:
        floor = _with_rug(rng, floor)
    if rng.random() < 0.35:
        floor = _with_cables(rng, floor)
    return floor * _light(rng, room, sun)[..., None], roads


def _wood(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    colour = varied(rng, _WOODS[int(rng.integers(len(_WOODS)))], 12)
    width = int(rng.uniform(0.06, 0.16) * FLOOR_TEXELS_PER_M)
    length = int(rng.uniform(0.5, 1.4) * FLOOR_TEXELS_PER_M)
    turned = rng.random() < 0.5
    if turned:
        rows, columns = columns, rows
    lane = np.arange(rows) // width
    along = np.arange(columns)[None, :] + rng.integers(0, length, int(lane[-1]) + 1)[lane][:, None]
    board = lane[:, None] * 31 + along // length
    shade = rng.normal(1.0, rng.uniform(0.02, 0.10), int(board.max()) + 1).astype(np.float32)[board]
    shade *= 0.92 + 0.16 * smooth_noise(rng, rows, columns, 70, 3)  # grain, along the board
    shade *= speckle(rng, rows, columns, 0.015)
    joint = float(rng.uniform(0.6, 0.92))
    shade[np.arange(rows) % width == 0] *= joint
    shade[along % length == 0] *= joint
    knots = smooth_noise(rng, rows, columns, 7, 5)
    shade *= 1 - 6 * np.maximum(knots - np.float32(0.93), 0)
    floor = colour * shade[..., None]
    if rng.random() < 0.3:  # inlays of a darker wood
        floor = _with_inlays(rng, floor)
    return floor.transpose(1, 0, 2) if turned else floor


def _with_inlays(rng: np.random.Generator, floor: np.ndarray) -> np.ndarray:
    mask = Image.new("L", floor.shape[1::-1])
    pen = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(2, 7))):
        ends = [(float(rng.uniform(0, mask.width)), float(rng.uniform(0, mask.height))) for _ in range(2)]
        pen.line(ends, 255, int(rng.uniform(0.05, 0.20) * FLOOR_TEXELS_PER_M))
    return np.where(np.asarray(mask)[..., None] > 0, floor * np.float32(rng.uniform(0.45, 0.75)), floor)


def _carpet(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    shade = speckle(rng, rows, columns, rng.uniform(0.03, 0.08))
    shade *= 0.88 + 0.24 * smooth_noise(rng, rows, columns, 6)
    shade *= 0.92 + 0.16 * smooth_noise(rng, rows, columns, 80)  # trodden
    colour = varied(rng, _CARPETS[int(rng.integers(len(_CARPETS)))], 8)
    if rng.random() < 0.2:
        colour = any_colour(rng) * np.float32(0.6) + np.float32(40)
    return colour * shade[..., None]


def _tiles(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    side = int(rng.uniform(0.15, 0.5) * FLOOR_TEXELS_PER_M)
    row, column = np.arange(rows), np.arange(columns)
    tile = (row // side)[:, None] * 37 + column // side
    shade = rng.normal(1.0, 0.02, int(tile.max()) + 1).astype(np.float32)[tile]
    shade *= 0.95 + 0.1 * smooth_noise(rng, rows, columns, 40)
    joint = float(rng.choice((0.7, 0.85, 1.12)))
    shade[row % side == 0] *= joint
    shade[:, column % side == 0] *= joint
    return varied(rng, _STONES[int(rng.integers(len(_STONES)))], 8) * shade[..., None]


def _stone(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Linoleum, concrete, terrazzo, a painted table top."""
    shade = speckle(rng, rows, columns, rng.uniform(0.0, 0.04))
    shade *= 0.94 + 0.12 * smooth_noise(rng, rows, columns, int(rng.integers(10, 120)))
    if rng.random() < 0.4:
        chips = smooth_noise(rng, rows, columns, int(rng.integers(2, 5)))
        depth = np.float32(rng.uniform(0.05, 0.25))
        shade *= np.where(chips > 0.85, 1 - depth, np.where(chips < 0.12, 1 + depth, 1)).astype(np.float32)
    return varied(rng, _STONES[int(rng.integers(len(_STONES)))], 8) * shade[..., None]


def _with_rug(rng: np.random.Generator, floor: np.ndarray) -> np.ndarray:
    rows, columns = floor.shape[:2]
    top, left = int(rng.uniform(0, 0.6) * rows), int(rng.uniform(0, 0.6) * columns)
    part = floor[
        top : top + int(rng.uniform(0.8, 2.0) * FLOOR_TEXELS_PER_M), left : left + int(2.0 * FLOOR_TEXELS_PER_M)
    ]
    rug = any_colour(rng) * speckle(rng, part.shape[0], part.shape[1], 0.06)[..., None]
    if rng.random() < 0.5:
        rug[(np.arange(part.shape[0]) // int(rng.integers(8, 40))) % 2 == 0] *= np.float32(rng.uniform(0.6, 1.3))
    part[:] = rug
    return floor


def _with_cables(rng: np.random.Generator, floor: np.ndarray) -> np.ndarray:
    """Thin dark cables, which a robot drives over."""
    mask = Image.new("L", floor.shape[1::-1])
    pen = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(1, 4))):
        path = curve(rng, mask.width / FLOOR_TEXELS_PER_M, mask.height / FLOOR_TEXELS_PER_M) * FLOOR_TEXELS_PER_M
        pen.line([tuple(point) for point in path], 255, int(rng.integers(1, 3)))
    return np.where(np.asarray(mask)[..., None] > 0, varied(rng, (40, 40, 42), 10), floor)


def _light(rng: np.random.Generator, room: Room, sun: np.ndarray) -> np.ndarray:
    """(rows, columns) float32: a lamp or a window, cast shadows, and darkness around the foot of all that stands."""
    rows, columns = (math.ceil(side / _LIGHT_CELL_M) for side in (room.depth_m, room.width_m))
    y, x = (np.mgrid[0:rows, 0:columns] + 0.5) * _LIGHT_CELL_M
    lamp_x, lamp_y = rng.uniform(0, room.width_m), rng.uniform(0, room.depth_m)
    reach_m2, strength = rng.uniform(0.4, 4.0), rng.uniform(0.1, 0.45)
    light = 1.0 - strength + strength * np.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / reach_m2)
    if not room.drop_m:
        wall_gap = np.minimum(np.minimum(x, room.width_m - x), np.minimum(y, room.depth_m - y))
        light *= 1.0 - rng.uniform(0.15, 0.45) * np.exp(-wall_gap / 0.09)
    depth = rng.uniform(0.35, 0.75)
    cast = -sun * rng.uniform(0.3, 1.6)  # metres of shadow per metre of height
    hard = float(np.hypot(*sun))
    for solid in room.things:
        height = min(solid.height_m, 0.8)
        for step in range(_SHADOW_STEPS):
            high = height * step / (_SHADOW_STEPS - 1)
            centre = solid.x_m + cast[0] * high, solid.y_m + cast[1] * high
            reach = 0.012 + 0.05 * min(height, 0.6) + 0.12 * high
            _darken(light, solid, centre, reach, depth * (1.0 if step == 0 else hard * 0.5))
    grey = np.clip(light * (255 / 1.3), 0, 255).astype(np.uint8)
    size = (math.ceil(room.depth_m * FLOOR_TEXELS_PER_M), math.ceil(room.width_m * FLOOR_TEXELS_PER_M))
    return upscaled(grey, *size) * np.float32(1.3)


def _darken(
    light: np.ndarray, solid: Box | Cylinder, centre: tuple[float, float], reach_m: float, depth: float
) -> None:
    """Darkens the light in and around a footprint put at `centre`, fading over `reach_m`; changes `light`."""
    size = math.hypot(solid[2], solid[3]) if isinstance(solid, Box) else solid.radius_m
    margin = size + 4 * reach_m
    low_row, low_column = (max(0, int((value - margin) / _LIGHT_CELL_M)) for value in centre[::-1])
    part = light[low_row : max(0, int((centre[1] + margin) / _LIGHT_CELL_M) + 1),
                 low_column : max(0, int((centre[0] + margin) / _LIGHT_CELL_M) + 1)]  # fmt: skip
    if not part.size:
        return
    dy = (np.arange(part.shape[0])[:, None] + low_row + 0.5) * _LIGHT_CELL_M - centre[1]
    dx = (np.arange(part.shape[1])[None, :] + low_column + 0.5) * _LIGHT_CELL_M - centre[0]
    if isinstance(solid, Box):
        cos, sin = math.cos(solid.angle_rad), math.sin(solid.angle_rad)
        along = np.maximum(np.abs(dx * cos + dy * sin) - solid.half_length_m, 0.0)
        across = np.maximum(np.abs(dy * cos - dx * sin) - solid.half_width_m, 0.0)
        gap = np.sqrt(along**2 + across**2)
    else:
        gap = np.maximum(np.sqrt(dx**2 + dy**2) - size, 0.0)
    part *= 1.0 - depth * np.exp(-gap / reach_m)
