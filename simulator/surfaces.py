"""What a room looks like: colours, patterns, outlines and light, baked once per room; a frame only looks them up.

Colours are packed as RGBX, four bytes in one uint32. Pictures of upright surfaces are stored column by column, from the
floor upward: what one column of the frame shows of a surface lies together in memory.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simulator import floors, things, walls
from simulator.mats import Path
from simulator.room import WALLS, Look, Room
from simulator.textures import clutter, pack, varied

ROWS = 128  # of every picture of an upright surface
FAR_SHRINK = 4  # the floor far off is looked up in a picture this much coarser: no shimmer there
_THING_TEXELS_PER_M = 300.0  # along a thing; its height always takes all rows
_LARGE = (Look.CUPBOARD, Look.SOFA, Look.WALL)


@dataclass(frozen=True)
class Surfaces:
    """The looks of one room. Materials have the numbers of the solids; then come the ceiling and the floor below.

    Attributes:
        floor: (texels,) uint32 RGBX: the floor with its light, then the same shrunk, both with rows of `floor_stride`.
        floor_stride: texels in a row.
        floor_rows: rows of the first, so that the shrunk one begins there.
        atlas: (texels,) uint32 RGBX: all pictures, each as columns of `ROWS` texels.
        begin: (materials,) int64, where each picture begins in the atlas.
        columns: (materials,) int64, how many columns it has, a power of two: so wrapping is a bit mask.
        along: (materials,) float32, texels per m along the surface.
        up: (materials,) float32, texels per m of height.
        outlines: (things, things.OUTLINE) float32, shares of the thing's height.
        roundness: (things,) float32, see things.py.
        sun: (2,) float32, the horizontal direction from which most light comes, times its strength in 0..1.
        gloss: how much the floor mirrors the light, 0..1.
        roads: the middles of the roads printed on the floor.
    """

    floor: np.ndarray
    floor_stride: int
    floor_rows: int
    atlas: np.ndarray
    begin: np.ndarray
    columns: np.ndarray
    along: np.ndarray
    up: np.ndarray
    outlines: np.ndarray
    roundness: np.ndarray
    sun: np.ndarray
    gloss: float
    roads: tuple[Path, ...]


@functools.lru_cache(maxsize=4)
def surfaces_of(room: Room) -> Surfaces:
    """The looks of a room: the same for the same room."""
    rng = np.random.default_rng([room.looks_seed, 1])
    angle = float(rng.uniform(0, 2 * math.pi))
    sun = rng.uniform(0.1, 0.5) * np.array([math.cos(angle), math.sin(angle)])
    gloss = max(0.0, float(rng.uniform(-0.8, 0.7)))
    pictures = walls.paint_all(rng)
    plain = walls.pillar(rng, pictures[0])
    heights = [1.28] * WALLS
    own = [np.random.default_rng([room.seed, 9, number]) for number in range(len(room.looks))]
    outlines = [things.outline(one, look) for one, look in zip(own, room.looks, strict=True)]
    for one, thing in zip(own, room.things, strict=True):
        pictures.append(plain if thing.look == Look.WALL else things.paint(one, thing.look))
        heights.append(1.28 if thing.look == Look.WALL else thing.height_m)
    pictures += [np.full((ROWS, 128, 3), varied(rng, (216, 216, 212), 8)), _below(rng)]
    heights += [1.28, 1.28]
    along = [walls.TEXELS_PER_M] * WALLS
    along += [walls.TEXELS_PER_M if look in _LARGE else _THING_TEXELS_PER_M for look in room.looks]
    along += [walls.TEXELS_PER_M] * 2
    lit, roads = floors.paint(rng, room, sun)
    floor, stride, rows = _floor_pictures(lit)
    sizes = np.array([picture.shape[1] for picture in pictures], np.int64)
    return Surfaces(
        floor=floor,
        floor_stride=stride,
        floor_rows=rows,
        atlas=np.concatenate([pack(picture.transpose(1, 0, 2)).ravel() for picture in pictures]),
        begin=np.concatenate([[0], np.cumsum(sizes)[:-1] * ROWS]),
        columns=sizes,
        along=np.array(along, np.float32),
        up=(ROWS / np.array(heights)).astype(np.float32),
        outlines=np.array(outlines, np.float32).reshape(-1, things.OUTLINE),
        roundness=np.array([things.roundness(look) for look in room.looks], np.float32),
        sun=sun.astype(np.float32),
        gloss=gloss,
        roads=tuple(roads),
    )


def _below(rng: np.random.Generator) -> np.ndarray:
    """The floor that one sees from a table top: dim and busy."""
    return clutter(rng, ROWS, 128, 30, 0.6) * np.float32(0.5) + varied(rng, (70, 66, 62), 20)


def _floor_pictures(lit: np.ndarray) -> tuple[np.ndarray, int, int]:
    near = pack(lit)
    picture = Image.fromarray(near.view(np.uint8).reshape(*near.shape, 4)[..., :3]).reduce(FAR_SHRINK)
    far = pack(np.asarray(picture))
    wide = np.zeros((far.shape[0], near.shape[1]), np.uint32)
    wide[:, : far.shape[1]] = far
    return np.concatenate([near.ravel(), wide.ravel()]), near.shape[1], near.shape[0]
