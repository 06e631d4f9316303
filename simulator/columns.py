"""What each column of rays (one azimuth) sees, from below upward: a table of surfaces.

Everything in a room rises straight from the floor, so a column sees a stack of intervals of elevation: floor, a thing's
front, its top, floor again, the next thing, the wall, the ceiling. The camera fills its pixels from this table.
"""

from dataclasses import dataclass

import numpy as np

from simulator import raycast
from simulator.room import Room
from simulator.surfaces import ROWS, Surfaces
from simulator.things import OUTLINE

LAYERS = 4  # nearest things that a column can show
STEEPEST = 7.9  # tangents of elevation are kept within +-this; the lens sees less
KEY_STEP = 16.0  # distance between the sort keys of neighbouring columns, more than 2 * STEEPEST
FLOOR, FACE, LEVEL = 0, 1, 2
_BEYOND_M = 2.0  # how far behind the edge of a table top the wall stands
_WALL_NORMALS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # into the room


@dataclass(frozen=True)
class Table:
    """The surfaces that the columns see, column by column and from below upward; one row each, none of them empty."""

    starts: np.ndarray  # float64 sort keys: column * KEY_STEP + tangent of the elevation where the surface begins
    kind: np.ndarray  # uint8: FLOOR, FACE (upright) or LEVEL (horizontal, but not the floor)
    foot: np.ndarray  # float32, rows of the picture at the lens's height, of a FACE
    climb: np.ndarray  # float32, rows of the picture for each unit of tangent, of a FACE
    begin: np.ndarray  # int64, where in the atlas the picture's column (FACE) or the picture (LEVEL) begins
    rise: np.ndarray  # float32, m, of a LEVEL surface above the lens
    shade: np.ndarray  # float32, brightness


def table_of(
    room: Room, looks: Surfaces, lens_height: float, x: float, y: float, cos: np.ndarray, sin: np.ndarray
) -> Table:
    """The table for columns that look along (cos, sin) from a lens at x, y.

    Args:
        room: with its things.
        looks: of the room.
        lens_height: above the floor, m.
        x: of the lens, m.
        y: of the lens, m.
        cos: (columns,) of the azimuths.
        sin: (columns,) of the azimuths.
    """
    hits = raycast.cast(room, x, y, cos, sin)
    walls = raycast.cast_walls(room, x, y, cos, sin)
    columns = cos.size
    order = np.argsort(hits.enter_m, axis=1)[:, :LAYERS]  # (K, L)
    layers = order.shape[1]
    pick = np.arange(columns)[:, None], order
    nearest = hits.thing[order]
    enter, leave, across = hits.enter_m[pick], hits.leave_m[pick], hits.across_m[pick]
    height = raycast.heights(room)[nearest] * _outline(looks, nearest, hits.profile[pick])
    front = height * looks.roundness[nearest]
    missed = np.isinf(enter)
    enter[missed] = leave[missed] = 1.0
    back = np.where(looks.roundness[nearest] < 1, (enter + leave) / 2, enter)

    # Tangents at which each surface begins: floor, then front, top, floor of each layer, then what lies below a
    # table's edge, wall, ceiling.
    rows = 1 + 3 * layers + 3
    begin = np.empty((columns, rows))
    begin[:, 0] = -STEEPEST
    begin[:, 1:-3:3] = -lens_height / enter
    begin[:, 2:-3:3] = (front - lens_height) / enter
    begin[:, 3:-3:3] = np.maximum((height - lens_height) / back, (height - lens_height) / leave)
    begin[:, 1:-3][np.repeat(missed, 3, axis=1)] = -STEEPEST
    wall_distance = walls.distance_m + (_BEYOND_M if room.drop_m else 0.0)
    begin[:, -3] = -lens_height / walls.distance_m
    begin[:, -2] = -(lens_height + room.drop_m) / wall_distance
    begin[:, -1] = (room.height_m - lens_height) / wall_distance
    np.clip(begin, -STEEPEST, STEEPEST, out=begin)
    np.maximum.accumulate(begin, axis=1, out=begin)  # what is nearer hides what is behind
    seen = np.empty((columns, rows), bool)
    np.greater(begin[:, 1:], begin[:, :-1], out=seen[:, :-1])
    seen[:, -1] = True
    begin += (np.arange(columns) * KEY_STEP)[:, None]

    foot = np.zeros((columns, rows), np.float32)
    climb = np.zeros((columns, rows), np.float32)
    picture = np.zeros((columns, rows), np.int64)
    rise = np.zeros((columns, rows), np.float32)
    shade = np.ones((columns, rows), np.float32)

    material = nearest + raycast.FIRST_THING
    up = looks.up[material]
    foot[:, 1:-3:3], climb[:, 1:-3:3] = lens_height * up, enter * up
    wrapped = (across * looks.along[material]).astype(np.int64) & (looks.columns[material] - 1)
    picture[:, 1:-3:3] = looks.begin[material] + wrapped * ROWS
    picture[:, 2:-3:3] = looks.begin[material]
    rise[:, 2:-3:3] = height - lens_height
    facing = np.maximum(hits.normal_x[pick] * looks.sun[0] + hits.normal_y[pick] * looks.sun[1], -0.25)
    shade[:, 1:-3:3] = (0.78 + facing) / (1.0 + 0.06 * enter)
    shade[:, 2:-3:3] = 1.1

    up = looks.up[walls.wall]
    foot[:, -2], climb[:, -2] = (lens_height + room.drop_m) * up, wall_distance * up
    wrapped = (walls.across_m * looks.along[walls.wall]).astype(np.int64) & (looks.columns[walls.wall] - 1)
    picture[:, -2] = looks.begin[walls.wall] + wrapped * ROWS
    normals = _WALL_NORMALS[walls.wall]
    towards_sun = normals[:, 0] * looks.sun[0] + normals[:, 1] * looks.sun[1]
    shade[:, -2] = (0.88 + 0.6 * towards_sun) / (1.0 + 0.06 * wall_distance)
    picture[:, -1], picture[:, -3] = looks.begin[-2], looks.begin[-1]
    rise[:, -1], rise[:, -3] = room.height_m - lens_height, -(lens_height + room.drop_m)

    kind = np.array([FLOOR, *(FACE, LEVEL, FLOOR) * layers, LEVEL, FACE, LEVEL], np.uint8)
    alive = np.flatnonzero(seen)
    parts = (foot, climb, picture, rise, shade)
    return Table(begin.ravel()[alive], kind[alive % rows], *(part.ravel()[alive] for part in parts))


def _outline(looks: Surfaces, things: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Share of their height that things have at these places across them (-1..1), straight between those drawn."""
    place = np.clip((profile + 1) * (OUTLINE / 2) - 0.5, 0, OUTLINE - 1.001)
    left = place.astype(np.intp)
    low, high = looks.outlines[things, left], looks.outlines[things, left + 1]
    found: np.ndarray = low + (high - low) * (place - left)
    return found
