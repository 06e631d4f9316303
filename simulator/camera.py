"""The robot's camera: from a room and a pose to a 224x224 RGB frame, fast enough to train and to drive with.

Not a general renderer. Everything in a room rises straight from the floor, so what a column of rays (one azimuth)
sees is a stack of intervals of elevation: floor, a thing's face, its top, floor again, the next thing, the wall, the
ceiling. A frame takes four steps, each a few NumPy calls over all rays or all pixels:

1. cast `COLUMNS` horizontal rays (raycast.py) and keep the nearest `LAYERS` things of each;
2. turn them into the elevations at which each column changes from one surface to the next;
3. give every pixel its surface; pixels are kept sorted by column and elevation, so that this is a run-length fill;
4. look the colours up (surfaces.py), apply light, lens and sensor, and put the pixels back in image order.

The lens is that of the Jetbot's usual IMX219 module with 160 degrees across the diagonal: equidistant (the angle from
the axis grows linearly with the distance from the centre), 4:3 squeezed into a square as the Jetbot's camera does.
"""

import math
from dataclasses import dataclass

import numpy as np

from serving.preprocess import HEIGHT, WIDTH
from simulator import raycast
from simulator.room import Pose, Room
from simulator.surfaces import FLOOR_TEXELS_PER_M, TILE, Surfaces, surfaces_of

COLUMNS = 640
LAYERS = 4  # nearest things that a column can show
HALF_WIDTH_RAD = math.radians(64.0)  # 160 degrees across the diagonal of a 4:3 sensor
HALF_HEIGHT_RAD = math.radians(48.0)
FORWARD_M = 0.05  # the lens is this far ahead of the robot's centre
_STEEPEST = 7.9  # tangents of elevation are kept within +-this; the lens sees less
_KEY_STEP = 16.0  # distance between the sort keys of neighbouring columns, more than 2 * _STEEPEST


@dataclass(frozen=True)
class CameraSettings:
    """How one camera is mounted and what its sensor makes of the light."""

    height_m: float = 0.08
    pitch_rad: float = math.radians(10.0)  # down
    exposure: float = 1.0
    tint: tuple[float, float, float] = (1.05, 0.94, 1.0)  # of red, green, blue at the edge of the image
    vignette: float = 0.35  # light lost in the corners, share
    noise: float = 3.0  # standard deviation, grey levels


def make_settings(seed: int) -> CameraSettings:
    """A camera as one robot's might be: never mounted or exposed quite like the next."""
    rng = np.random.default_rng([seed, 2])
    pink = float(rng.uniform(0.0, 0.14))  # the module's colour shading: pink edges
    return CameraSettings(
        height_m=float(rng.uniform(0.076, 0.084)),
        pitch_rad=math.radians(float(rng.uniform(9.0, 11.0))),
        exposure=float(rng.uniform(0.75, 1.2)),
        tint=(1.0 + pink, 1.0 - pink, 1.0 + 0.6 * pink),
        vignette=float(rng.uniform(0.2, 0.45)),
        noise=float(rng.uniform(1.5, 5.0)),
    )


class Camera:
    """One camera; its tables are computed once, `render` then allocates little.

    Args:
        settings: mounting and sensor.
        seed: of the sensor's noise.
    """

    def __init__(self, settings: CameraSettings, seed: int = 0) -> None:
        self.settings = settings
        azimuth, tangent, off_axis = _lens(settings.pitch_rad)
        self._column_azimuth = np.linspace(azimuth.min(), azimuth.max(), COLUMNS)
        column = np.rint((azimuth - azimuth.min()) / (np.ptp(azimuth)) * (COLUMNS - 1)).astype(np.intp)
        key = column * _KEY_STEP + np.clip(tangent, -_STEEPEST, _STEEPEST)
        order = np.argsort(key, kind="stable")
        self._key = key[order]  # (pixels,) sorted
        self._back = np.argsort(order, kind="stable")  # image order -> sorted order
        self._tangent = tangent[order].astype(np.float32)
        self._cos = np.cos(azimuth[order]).astype(np.float32)
        self._sin = np.sin(azimuth[order]).astype(np.float32)
        self._gain = self._lens_gain(off_axis[order])
        self._noise_rng = np.random.default_rng([seed, 3])
        noise = np.random.default_rng([seed, 4]).normal(0, settings.noise, 4 * (HEIGHT * WIDTH + 65536))
        self._noise = noise.astype(np.float32).reshape(-1, 4)

    def render(self, room: Room, pose: Pose) -> np.ndarray:
        """What the camera sees from a pose of the robot's centre.

        Returns:
            (224, 224, 3) uint8, RGB. Two frames of one pose differ by the sensor's noise.
        """
        looks = surfaces_of(room)
        x, y = self._lens_position(room, pose)
        azimuth = self._column_azimuth + pose.heading_rad
        table = _surface_table(room, looks, self.settings.height_m, x, y, np.cos(azimuth), np.sin(azimuth))
        starts = np.searchsorted(self._key, table.starts)
        run = np.diff(starts, append=self._key.size)
        run[0] += starts[0]
        surface = np.repeat(np.arange(run.size, dtype=np.int32), run)  # (pixels,)
        colour, shade = self._look_up(room, looks, table, surface, x, y, pose.heading_rad)
        return self._expose(colour, shade)

    def _lens_position(self, room: Room, pose: Pose) -> tuple[float, float]:
        """Just inside the room, should the lens of a robot at a wall come to lie on it."""
        x = pose.x_m + FORWARD_M * math.cos(pose.heading_rad)
        y = pose.y_m + FORWARD_M * math.sin(pose.heading_rad)
        return min(max(x, 1e-3), room.width_m - 1e-3), min(max(y, 1e-3), room.depth_m - 1e-3)

    def _look_up(
        self, room: Room, looks: Surfaces, table: "_Table", surface: np.ndarray, x: float, y: float, heading: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(pixels,) uint32 RGBX and (pixels,) float32 brightness."""
        colour = np.zeros(surface.size, np.uint32)
        kind = table.kind[surface]
        cos, sin = np.float32(math.cos(heading)), np.float32(math.sin(heading))
        # Floor: where the ray meets it, in the baked map.
        at = np.flatnonzero(kind == _FLOOR)
        reach = np.float32(-self.settings.height_m) / np.minimum(self._tangent[at], np.float32(-1e-4))
        east, north = self._offsets(at, reach, cos, sin)
        rows, columns = looks.floor.shape
        row = np.clip(((north + np.float32(y)) * FLOOR_TEXELS_PER_M).astype(np.int32), 0, rows - 1)
        row *= columns
        row += np.clip(((east + np.float32(x)) * FLOOR_TEXELS_PER_M).astype(np.int32), 0, columns - 1)
        colour[at] = looks.floor.ravel()[row]
        # Upright: walls and faces, by height above the floor and place along the surface.
        at = np.flatnonzero(kind == _FACE)
        of = surface[at]
        up = np.float32(self.settings.height_m) + table.distance[of] * self._tangent[at]
        colour[at] = _pattern(looks, table, of, up * table.scale[of], table.across[of])
        # Level, but not the floor: tops and the ceiling.
        at = np.flatnonzero(kind == _LEVEL)
        of = surface[at]
        tangent = self._tangent[at]
        reach = table.rise[of] / np.where(np.abs(tangent) < 1e-4, np.float32(1e-4), tangent)
        east, north = self._offsets(at, np.clip(reach, 0, 10), cos, sin)
        colour[at] = _pattern(looks, table, of, east * table.scale[of], north * table.scale[of])
        return colour, table.shade[surface]

    def _offsets(
        self, at: np.ndarray, reach: np.ndarray, cos: np.float32, sin: np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """World offsets (east along x, north along y) of points `reach` metres out along the pixels' rays."""
        ahead, left = reach * self._cos[at], reach * self._sin[at]
        return ahead * cos - left * sin, ahead * sin + left * cos

    def _expose(self, colour: np.ndarray, shade: np.ndarray) -> np.ndarray:
        light = colour.view(np.uint8).reshape(-1, 4).astype(np.float32)
        light *= self._gain
        light *= shade[:, None]
        start = int(self._noise_rng.integers(self._noise.shape[0] - light.shape[0]))
        light += self._noise[start : start + light.shape[0]]
        np.clip(light, 0, 255, out=light)
        packed = light.astype(np.uint8).view(np.uint32)[:, 0]
        image = packed[self._back].view(np.uint8).reshape(HEIGHT, WIDTH, 4)
        return np.ascontiguousarray(image[..., :3])

    def _lens_gain(self, off_axis: np.ndarray) -> np.ndarray:
        """(pixels, 4) float32: exposure, light lost off the axis, and the tint that grows with it."""
        edge = np.clip(off_axis / math.radians(80.0), 0, 1)[:, None] ** 2
        tint = 1.0 + (np.array([*self.settings.tint, 1.0]) - 1.0) * edge
        return (self.settings.exposure * (1.0 - self.settings.vignette * edge) * tint).astype(np.float32)


_FLOOR, _FACE, _LEVEL = 0, 1, 2


@dataclass(frozen=True)
class _Table:
    """The surfaces that the columns see, column by column and from below upward; one row each."""

    starts: np.ndarray  # float64 sort keys: column * _KEY_STEP + tangent of the elevation where the surface begins
    kind: np.ndarray  # uint8
    material: np.ndarray  # int32
    distance: np.ndarray  # float32, m, of an upright surface
    rise: np.ndarray  # float32, m, of a level surface above the lens
    across: np.ndarray  # float32, texels along an upright surface
    scale: np.ndarray  # float32, texels per m
    shade: np.ndarray  # float32


def _surface_table(
    room: Room, looks: Surfaces, lens_height: float, x: float, y: float, cos: np.ndarray, sin: np.ndarray
) -> _Table:
    hits = raycast.cast(room, x, y, cos, sin)
    walls = raycast.cast_walls(room, x, y, cos, sin)
    columns = cos.size
    nearest = np.argsort(hits.enter_m, axis=1)[:, :LAYERS]  # (K, L)
    layers = nearest.shape[1]
    pick = np.arange(columns)[:, None], nearest
    enter, leave = hits.enter_m[pick], hits.leave_m[pick]
    height = raycast.heights(room)[nearest]
    facing = np.maximum(hits.normal_x[pick] * looks.light[0] + hits.normal_y[pick] * looks.light[1], -0.2)

    # Tangents at which each surface begins: floor, then face, top, floor of each layer, then wall, ceiling.
    rows = 1 + 3 * layers + 2
    begin = np.empty((columns, rows))
    begin[:, 0] = -_STEEPEST
    begin[:, 1:-2:3] = -lens_height / enter
    begin[:, 2:-2:3] = (height - lens_height) / enter
    begin[:, 3:-2:3] = np.where(height < lens_height, (height - lens_height) / leave, begin[:, 2:-2:3])
    missed = np.isinf(enter)
    begin[:, 1:-2][np.repeat(missed, 3, axis=1)] = -_STEEPEST
    begin[:, -2] = -lens_height / walls.distance_m
    begin[:, -1] = (room.height_m - lens_height) / walls.distance_m
    np.clip(begin, -_STEEPEST, _STEEPEST, out=begin)
    np.maximum.accumulate(begin, axis=1, out=begin)  # what is nearer hides what is behind
    begin += (np.arange(columns) * _KEY_STEP)[:, None]

    kind = np.tile(np.array([_FLOOR, *(_FACE, _LEVEL, _FLOOR) * layers, _FACE, _LEVEL], np.uint8), columns)
    material = np.zeros((columns, rows), np.int32)
    distance = np.ones((columns, rows), np.float32)
    rise = np.zeros((columns, rows), np.float32)
    across = np.zeros((columns, rows), np.float32)
    shade = np.ones((columns, rows), np.float32)
    material[:, 1:-2:3] = material[:, 2:-2:3] = nearest + raycast.FIRST_THING
    material[:, -2], material[:, -1] = walls.wall, looks.texels_per_m.size - 1
    distance[:, 1:-2:3] = np.where(missed, 1.0, enter)
    distance[:, -2] = walls.distance_m
    rise[:, 2:-2:3], rise[:, -1] = height - lens_height, room.height_m - lens_height
    scale = looks.texels_per_m[material]
    across[:, 1:-2:3] = hits.across_m[pick] * scale[:, 1:-2:3]
    across[:, -2] = walls.across_m * scale[:, -2]
    fade = 1.0 / (1.0 + 0.06 * distance)  # what is far is dimmer
    shade[:, 1:-2:3] = (0.72 + facing) * fade[:, 1:-2:3]
    shade[:, 2:-2:3] = 1.05
    shade[:, -2] = (0.85 + _WALL_NORMALS[walls.wall] @ looks.light * 0.6) * fade[:, -2]
    return _Table(
        starts=begin.ravel(),
        kind=kind,
        material=material.ravel(),
        distance=distance.ravel(),
        rise=rise.ravel(),
        across=across.ravel(),
        scale=scale.ravel(),
        shade=shade.ravel(),
    )


_WALL_NORMALS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], np.float32)  # into the room


def _pattern(looks: Surfaces, table: _Table, of: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Colours out of the atlas, the pattern wrapping around; rows and columns in texels."""
    mask = TILE - 1
    index = (row.astype(np.int32) & mask) * TILE + (column.astype(np.int32) & mask)
    found: np.ndarray = looks.atlas[table.material[of] * (TILE * TILE) + index]
    return found


def _lens(pitch_rad: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Azimuth (left positive), tangent of the elevation, angle from the optical axis, of every pixel (row-major)."""
    right, down = np.meshgrid((np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1, (np.arange(HEIGHT) + 0.5) / HEIGHT * 2 - 1)
    angle_right, angle_down = right * HALF_WIDTH_RAD, down * HALF_HEIGHT_RAD
    off_axis = np.hypot(angle_right, angle_down)
    spread = np.sin(off_axis) / np.maximum(off_axis, 1e-12)
    forward, left, up = np.cos(off_axis), -angle_right * spread, -angle_down * spread
    ahead = forward * math.cos(pitch_rad) + up * math.sin(pitch_rad)
    above = up * math.cos(pitch_rad) - forward * math.sin(pitch_rad)
    azimuth, tangent = np.arctan2(left, ahead), above / np.hypot(ahead, left)
    return azimuth.ravel(), tangent.ravel(), off_axis.ravel()
