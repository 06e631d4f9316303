"""Floors: carpet, wood, tiles, stone and printed mats, with the light and the shadows that fall on them.

A floor is painted once per room, from above; rows run along y, columns along x.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from simulator.room import Box, Cylinder, Room
from simulator.textures import any_colour, smooth_noise, speckle, upscaled, varied

TEXELS_PER_M = 240
_LIGHT_CELL_M = 0.02
_SHADOW_STEPS = 4  # copies of a footprint, from its foot to the end of its shadow

_WOODS = ((186, 152, 116), (166, 130, 96), (200, 172, 138), (128, 88, 58), (96, 64, 44), (178, 160, 140))
_CARPETS = ((168, 156, 146), (150, 146, 142), (186, 176, 164), (120, 116, 114), (90, 92, 100), (140, 120, 100))
_STONES = ((190, 188, 180), (160, 160, 158), (206, 200, 188), (130, 132, 134), (176, 166, 150), (226, 224, 218))


def paint(rng: np.random.Generator, room: Room, sun: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) float32 in 0..255: the floor of a room under its light.

    Args:
        rng: of the room's looks.
        room: what stands on the floor.
        sun: (2,) the horizontal direction towards the light, times its strength in 0..1.
    """
    rows, columns = (math.ceil(side * TEXELS_PER_M) for side in (room.depth_m, room.width_m))
    kinds: tuple[Callable[..., np.ndarray], ...] = (_wood, _carpet, _tiles, _stone)
    floor = kinds[int(rng.choice(4, p=(0.32, 0.28, 0.16, 0.24)))](rng, rows, columns)
    chance = rng.random()
    if chance < 0.42:
        floor = _with_mat(rng, floor)
    elif chance < 0.55:
        floor = _with_rug(rng, floor)
    if rng.random() < 0.35:
        floor = _with_cables(rng, floor)
    return floor * _light(rng, room, sun)[..., None]


def _wood(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    colour = varied(rng, _WOODS[int(rng.integers(len(_WOODS)))], 12)
    width = int(rng.uniform(0.06, 0.16) * TEXELS_PER_M)
    length = int(rng.uniform(0.5, 1.4) * TEXELS_PER_M)
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
        pen.line(ends, 255, int(rng.uniform(0.05, 0.20) * TEXELS_PER_M))
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
    side = int(rng.uniform(0.15, 0.5) * TEXELS_PER_M)
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


def _with_mat(rng: np.random.Generator, floor: np.ndarray) -> np.ndarray:
    """A printed mat or sheets of paper: a road with its edges and dashes, arrows, coloured signs. All of it is free."""
    rows, columns = floor.shape[:2]
    scale = TEXELS_PER_M // 2  # drawn at half the texels
    mat = Image.new("RGB", (columns // 2 + 1, rows // 2 + 1), tuple(int(v) for v in varied(rng, (232, 232, 230), 8)))
    pen = ImageDraw.Draw(mat)
    road = tuple(int(v) for v in varied(rng, (44, 44, 46), 10))
    width = int(rng.uniform(0.10, 0.32) * scale)  # from a toy's road to one that a Jetbot drives on
    outlined = rng.random() < 0.4  # two dark lines with white between them, rather than a dark road
    for _ in range(int(rng.integers(2, 9))):
        path = _curve(rng, mat.width, mat.height)
        if outlined:
            pen.line(path, road, width + int(rng.uniform(0.04, 0.14) * scale), joint="curve")
            pen.line(path, (232, 232, 228), width, joint="curve")
        else:
            pen.line(path, (236, 236, 236), width + int(0.06 * scale), joint="curve")
            pen.line(path, road, width + int(0.04 * scale), joint="curve")
            pen.line(path, (226, 226, 226), width + int(0.02 * scale), joint="curve")
            pen.line(path, road, width, joint="curve")
            for start in range(0, len(path) - 2, 4):
                pen.line(path[start : start + 2], (230, 230, 226), max(1, int(0.010 * scale)))
    for _ in range(int(rng.integers(0, 14))):
        _sign(rng, pen, mat.width, mat.height, scale, road)
    picture = np.asarray(mat.resize((columns, rows), Image.Resampling.BILINEAR)).astype(np.float32)
    if rng.random() < 0.5:
        return picture
    # A sheet that covers a part of the floor.
    cover = Image.new("L", (columns, rows))
    x, y = rng.uniform(0.2, 0.8) * columns, rng.uniform(0.2, 0.8) * rows
    reach = rng.uniform(0.6, 1.4, 4) * TEXELS_PER_M
    ImageDraw.Draw(cover).polygon([(x - reach[0], y), (x, y - reach[1]), (x + reach[2], y), (x, y + reach[3])], 255)
    return np.where(np.asarray(cover)[..., None] > 0, picture, floor)


def _curve(rng: np.random.Generator, width: int, height: int) -> list[tuple[float, float]]:
    """A path that bends, about across the picture."""
    x, y, heading = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
    step, bend, path = TEXELS_PER_M * 0.025, 0.0, []
    for number in range(110):
        if number % 12 == 0:
            bend = float(rng.choice((0.0, rng.uniform(-0.2, 0.2))))
        heading += bend
        x, y = x + step * math.cos(heading), y + step * math.sin(heading)
        path.append((float(x), float(y)))
    return path


def _sign(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int, scale: int, dark: tuple[int, ...]
) -> None:
    """An arrow, or a disc with a bar through it."""
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    size, angle = rng.uniform(0.03, 0.08) * scale, float(rng.uniform(0, 2 * math.pi))
    cos, sin = math.cos(angle), math.sin(angle)
    if rng.random() < 0.5:
        outline = ((-2, -0.35), (0.6, -0.35), (0.6, -1), (2, 0), (0.6, 1), (0.6, 0.35), (-2, 0.35))
        pen.polygon([(x + size * (u * cos - v * sin), y + size * (u * sin + v * cos)) for u, v in outline], dark)
        return
    pen.ellipse((x - size, y - size, x + size, y + size), tuple(int(v) for v in any_colour(rng)))
    pen.line((x - size * cos, y - size * sin, x + size * cos, y + size * sin), (235, 235, 230), max(1, int(size / 3)))


def _with_rug(rng: np.random.Generator, floor: np.ndarray) -> np.ndarray:
    rows, columns = floor.shape[:2]
    top, left = int(rng.uniform(0, 0.6) * rows), int(rng.uniform(0, 0.6) * columns)
    part = floor[top : top + int(rng.uniform(0.8, 2.0) * TEXELS_PER_M), left : left + int(2.0 * TEXELS_PER_M)]
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
        pen.line(_curve(rng, mask.width, mask.height), 255, int(rng.integers(1, 3)))
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
    size = (math.ceil(room.depth_m * TEXELS_PER_M), math.ceil(room.width_m * TEXELS_PER_M))
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
