"""What a room looks like: colours, patterns and light, baked once per room so that a frame only looks them up.

Colours are packed as RGBX, four bytes in one uint32: one lookup of four bytes is much cheaper than three of one.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simulator.room import WALLS, Room

FLOOR_TEXELS_PER_M = 200  # 5 mm
TILE = 128  # texels along each side of a material's pattern; a power of two, so that wrapping is a bit mask
_THING_TEXELS_PER_M = 400.0  # the pattern repeats every 0.32 m
_WALL_TEXELS_PER_M = 50.0  # 2.56 m: a wall from skirting board to ceiling
_LIGHT_CELL_M = 0.025

# Floors and walls are muted, things are not: as in most rooms.
_FLOORS = ((150, 112, 76), (186, 160, 124), (120, 116, 112), (176, 172, 164), (134, 140, 150))
_WALL_COLOURS = ((226, 222, 212), (206, 212, 216), (224, 208, 176), (190, 200, 186), (236, 234, 232))
_SKIRTINGS = ((96, 70, 50), (70, 66, 64), (60, 48, 40))
_DOORS = ((120, 90, 62), (176, 146, 110), (240, 240, 238))
_THINGS = (
    (196, 48, 42), (38, 84, 170), (36, 128, 74), (228, 186, 48), (38, 38, 42), (236, 236, 230),
    (222, 118, 40), (112, 62, 140), (60, 160, 168), (128, 82, 48), (206, 120, 150), (90, 96, 104),
)  # fmt: skip


@dataclass(frozen=True)
class Surfaces:
    """The looks of one room.

    Attributes:
        floor: (rows along y, columns along x) uint32 RGBX, with light and contact shadows in it.
        atlas: (materials * TILE * TILE,) uint32 RGBX; a solid's material has the solid's number, the ceiling is last.
        texels_per_m: (materials,) float32.
        light: (2,) float32, the horizontal direction from which most light comes, times its strength in 0..1.
    """

    floor: np.ndarray
    atlas: np.ndarray
    texels_per_m: np.ndarray
    light: np.ndarray


@functools.lru_cache(maxsize=4)
def surfaces_of(room: Room) -> Surfaces:
    """The looks of a room: the same for the same room."""
    rng = np.random.default_rng([room.seed, 1])
    floor_colour = _varied(rng, _FLOORS[rng.integers(len(_FLOORS))], 8)
    angle = rng.uniform(0, 2 * math.pi)
    light = (rng.uniform(0.15, 0.4) * np.array([math.cos(angle), math.sin(angle)])).astype(np.float32)
    tiles = _wall_tiles(rng)
    tiles += [_thing_tile(rng, floor_colour) for _ in range(len(room.boxes) + len(room.cylinders))]
    tiles.append(np.broadcast_to(_varied(rng, (228, 228, 224), 8), (TILE, TILE, 3)))
    scale = np.full(len(tiles), _THING_TEXELS_PER_M, np.float32)
    scale[:WALLS] = scale[-1] = _WALL_TEXELS_PER_M
    lit_floor = _floor_pattern(rng, room, floor_colour) * _floor_light(rng, room)[..., None]
    return Surfaces(pack(lit_floor), np.concatenate([pack(tile).ravel() for tile in tiles]), scale, light)


def pack(colours: np.ndarray) -> np.ndarray:
    """(..., 3) colours in 0..255 to (...) uint32 RGBX."""
    out = np.zeros((*colours.shape[:-1], 4), np.uint8)
    out[..., :3] = np.clip(colours, 0, 255)
    return out.view(np.uint32)[..., 0]


def _varied(rng: np.random.Generator, colour: tuple[int, ...] | np.ndarray, spread: float) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float32) + rng.normal(0, spread, 3), 8, 250).astype(np.float32)


def _wall_tiles(rng: np.random.Generator) -> list[np.ndarray]:
    """Four walls of one colour, one of them sometimes an accent; skirting board, now and then a door."""
    colour = _varied(rng, _WALL_COLOURS[rng.integers(len(_WALL_COLOURS))], 8)
    skirting = _varied(rng, _SKIRTINGS[rng.integers(len(_SKIRTINGS))], 8)
    skirting_rows = int(rng.integers(2, 6))
    accent = int(rng.integers(2 * WALLS))
    tiles = []
    for wall in range(WALLS):
        base = _varied(rng, _THINGS[rng.integers(len(_THINGS))], 10) * 0.6 + 80 if wall == accent else colour
        tile = np.broadcast_to(base, (TILE, TILE, 3)) * rng.normal(1.0, 0.012, (TILE, TILE, 1))
        if rng.random() < 0.35:
            left = int(rng.integers(0, TILE - 46))
            tile[:102, left : left + 46] = _varied(rng, _DOORS[rng.integers(len(_DOORS))], 10)
        tile[:skirting_rows] = skirting
        tile[skirting_rows] *= 0.75  # the joint above the board
        tiles.append(tile)
    return tiles


def _thing_tile(rng: np.random.Generator, floor_colour: np.ndarray) -> np.ndarray:
    """A plain, striped, chequered or mottled pattern in a colour that stands out from the floor."""
    colour = _varied(rng, _THINGS[rng.integers(len(_THINGS))], 14)
    while np.abs(colour - floor_colour).max() < 50:
        colour = _varied(rng, _THINGS[rng.integers(len(_THINGS))], 14)
    other = _varied(rng, _THINGS[rng.integers(len(_THINGS))], 14)
    rows, columns = np.mgrid[0:TILE, 0:TILE]
    period = TILE // int(2 ** rng.integers(1, 4))
    kind = rng.choice(5, p=(0.42, 0.16, 0.16, 0.08, 0.18))
    mask = (
        np.zeros((TILE, TILE), bool),
        columns % period < period // 3,
        rows % period < period // 3,
        (columns % period < period // 2) ^ (rows % period < period // 2),
        _smooth_noise(rng, TILE, TILE, 12) > 0.6,
    )[int(kind)]
    return np.where(mask[..., None], other, colour) * rng.normal(1.0, 0.03, (TILE, TILE, 1))


def _floor_pattern(rng: np.random.Generator, room: Room, colour: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) float32: planks, tiles, carpet or linoleum."""
    rows, columns = (math.ceil(side * FLOOR_TEXELS_PER_M) for side in (room.depth_m, room.width_m))
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) / FLOOR_TEXELS_PER_M
    kind = int(rng.integers(4))
    shade = 1.0 + 0.10 * (_smooth_noise(rng, rows, columns, 60) - 0.5)
    if kind == 0:  # planks
        plank_width, plank_length = rng.uniform(0.08, 0.16), rng.uniform(0.7, 1.4)
        lane = (y / plank_width).astype(np.int32)
        along = x + rng.uniform(0, plank_length, int(lane.max()) + 1)[lane]
        board = lane * 31 + (along / plank_length).astype(np.int32)
        shade *= rng.normal(1.0, 0.09, int(board.max()) + 1)[board]
        shade *= 1.0 + 0.05 * (_smooth_noise(rng, rows, columns, 60, 3) - 0.5)  # grain, along the board
        shade *= np.where((y % plank_width < 0.006) | (along % plank_length < 0.006), 0.6, 1.0)
    elif kind == 1:  # tiles
        side = rng.uniform(0.2, 0.45)
        shade *= np.where((x % side < 0.012) | (y % side < 0.012), rng.choice((0.65, 1.25)), 1.0)
    elif kind == 2:  # carpet
        shade *= rng.normal(1.0, 0.10, (rows, columns))
    else:  # linoleum
        shade *= 1.0 + 0.15 * (_smooth_noise(rng, rows, columns, 14) - 0.5)
    return (colour * shade[..., None]).astype(np.float32)


def _floor_light(rng: np.random.Generator, room: Room) -> np.ndarray:
    """(rows, columns) float32: a lamp somewhere above, and darkness around the foot of all that stands there."""
    rows, columns = (math.ceil(side / _LIGHT_CELL_M) for side in (room.depth_m, room.width_m))
    y, x = (np.mgrid[0:rows, 0:columns].astype(np.float32) + 0.5) * _LIGHT_CELL_M
    lamp_x, lamp_y = rng.uniform(0, room.width_m), rng.uniform(0, room.depth_m)
    light = 0.82 + 0.3 * np.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / 3.0)
    wall_gap = np.minimum(np.minimum(x, room.width_m - x), np.minimum(y, room.depth_m - y))
    light *= 1.0 - 0.35 * np.exp(-wall_gap / 0.08)
    for bx, by, half_length, half_width, height, cos, sin in room.box_array:
        dx, dy = x - bx, y - by
        along = np.maximum(np.abs(dx * cos + dy * sin) - half_length, 0.0)
        across = np.maximum(np.abs(dy * cos - dx * sin) - half_width, 0.0)
        light *= _contact_shadow(np.hypot(along, across), height)
    for cx, cy, radius, height in room.cylinder_array:
        light *= _contact_shadow(np.maximum(np.hypot(x - cx, y - cy) - radius, 0.0), height)
    size = (math.ceil(room.width_m * FLOOR_TEXELS_PER_M), math.ceil(room.depth_m * FLOOR_TEXELS_PER_M))
    return np.asarray(Image.fromarray(light.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _contact_shadow(gap_m: np.ndarray, height_m: float) -> np.ndarray:
    """A higher thing keeps more of the sky from the floor around it."""
    reach_m = 0.03 + 0.08 * min(height_m, 0.6)
    return 1.0 - 0.5 * np.exp(-gap_m / reach_m)


def _smooth_noise(
    rng: np.random.Generator, rows: int, columns: int, cell: int, row_cell: int | None = None
) -> np.ndarray:
    """(rows, columns) float32 in 0..1: random values every `cell` texels, smooth between."""
    coarse = rng.random((rows // (row_cell or cell) + 2, columns // cell + 2), np.float32)
    return np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))
