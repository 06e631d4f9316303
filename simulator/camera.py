"""The robot's camera: from a room and a pose to a 224x224 RGB frame, fast enough to train and to drive with.

Not a general renderer. A frame takes four steps, each a few NumPy calls over all rays or all pixels:

1. cast `COLUMNS` horizontal rays (raycast.py);
2. turn them into the elevations at which each column changes from one surface to the next (columns.py);
3. give every pixel its surface; pixels are kept sorted by column and elevation, so that this is a run-length fill;
4. look the colours up (surfaces.py), put the pixels back in image order, and let the sensor make its picture of them
   (sensor.py).
"""

import math
from dataclasses import dataclass, field

import numpy as np

from serving.preprocess import HEIGHT, WIDTH
from simulator import lens
from simulator.columns import FACE, FLOOR, KEY_STEP, LEVEL, STEEPEST, Table, table_of
from simulator.room import Pose, Room
from simulator.sensor import Sensor, SensorSettings, make_sensor_settings
from simulator.surfaces import FAR_SHRINK, ROWS, Surfaces, surfaces_of
from simulator.textures import FLOOR_TEXELS_PER_M

COLUMNS = 416
FORWARD_M = 0.05  # the lens is this far ahead of the robot's centre
_FAR_M = 0.7  # from here on the floor is looked up in its coarser picture
_MIRROR_TANGENT, _MIRROR_SPREAD, _MIRROR_WIDTH_RAD = -0.45, 0.35, 0.30  # where a glossy floor shows the window


@dataclass(frozen=True)
class CameraSettings:
    """How one camera is mounted, what lens it has, and its sensor."""

    height_m: float = 0.08
    pitch_rad: float = math.radians(10.0)  # down
    half_width_rad: float = lens.WIDE_HALF_WIDTH_RAD
    half_height_rad: float = lens.WIDE_HALF_HEIGHT_RAD
    straight: bool = False  # lines stay straight: a plain lens
    sensor: SensorSettings = field(default_factory=SensorSettings)


def make_settings(seed: int) -> CameraSettings:
    """A camera as one robot's might be: three in five have the wide lens, no two are mounted or exposed alike."""
    rng = np.random.default_rng([seed, 2])
    wide = bool(rng.random() < 0.6)
    if wide:
        share = rng.uniform(0.85, 1.0)  # cameras crop differently
        half_width, half_height = lens.WIDE_HALF_WIDTH_RAD * share, lens.WIDE_HALF_HEIGHT_RAD * share
    else:
        half_width = math.radians(float(rng.uniform(25.0, 38.0)))
        half_height = half_width * float(rng.uniform(0.75, 1.0))
    return CameraSettings(
        height_m=float(rng.uniform(0.07, 0.12)),
        pitch_rad=math.radians(float(rng.uniform(2.0, 32.0))),
        half_width_rad=float(half_width),
        half_height_rad=float(half_height),
        straight=not wide,
        sensor=make_sensor_settings(rng, wide),
    )


class Camera:
    """One camera; its tables are computed once, `render` then allocates little.

    Args:
        settings: mounting, lens and sensor.
        seed: of the sensor's noise.
    """

    def __init__(self, settings: CameraSettings, seed: int = 0) -> None:
        self.settings = settings
        azimuth, tangent, off_centre = lens.rays(
            settings.half_width_rad, settings.half_height_rad, settings.straight, settings.pitch_rad
        )
        self._column_azimuth = np.linspace(azimuth.min(), azimuth.max(), COLUMNS)
        column = np.rint((azimuth - azimuth.min()) / np.ptp(azimuth) * (COLUMNS - 1)).astype(np.intp)
        key = column * KEY_STEP + np.clip(tangent, -STEEPEST, STEEPEST)
        order = np.argsort(key, kind="stable")
        self._key = key[order]  # (pixels,) sorted
        self._column = column[order]
        self._sensor = Sensor(settings.sensor, off_centre, seed)
        back = np.argsort(order, kind="stable").reshape(HEIGHT, WIDTH)  # image order -> sorted order
        self._back = np.pad(back, self._sensor.pad, "edge")
        self._tangent = tangent[order].astype(np.float32)
        self._cos, self._sin = np.cos(azimuth[order]).astype(np.float32), np.sin(azimuth[order]).astype(np.float32)
        self._floor_texels(tangent[order], azimuth[order])
        mirrored = (tangent[order] - _MIRROR_TANGENT) / _MIRROR_SPREAD
        self._mirror = np.exp(-(mirrored**2)).astype(np.float32)

    def _floor_texels(self, tangent: np.ndarray, azimuth: np.ndarray) -> None:
        """Where each pixel meets the floor: texels ahead and to the left of the lens, of the picture that it is in."""
        reach = -self.settings.height_m / np.minimum(tangent, -1e-3)
        far = reach > _FAR_M
        scale = np.where(far, FLOOR_TEXELS_PER_M / FAR_SHRINK, FLOOR_TEXELS_PER_M)
        self._floor_scale = scale.astype(np.float32)
        self._floor_far = far.astype(np.float32)
        # Within half a texel, at random: neighbours blend instead of showing squares. Less where a texel is large.
        blend = np.random.default_rng(0).integers(-128, 128, (2, reach.size)) / 256
        large = np.clip(0.015 * reach * scale, 0.15, 1.0)
        self._floor_ahead = (reach * np.cos(azimuth) * scale + blend[0] * large).astype(np.float32)
        self._floor_left = (reach * np.sin(azimuth) * scale + blend[1] * large).astype(np.float32)
        self._blend = blend[0].astype(np.float32)

    def render(self, room: Room, pose: Pose, turn_rad_s: float = 0.0) -> np.ndarray:
        """What the camera sees from a pose of the robot's centre.

        Args:
            room: where the robot is.
            pose: of the robot's centre.
            turn_rad_s: how fast it turns: the picture smears while the shutter is open.

        Returns:
            (224, 224, 3) uint8, RGB. Two frames of one pose differ by the sensor's noise.
        """
        looks = surfaces_of(room)
        x, y = self._lens_position(room, pose)
        azimuth = self._column_azimuth + pose.heading_rad
        table = table_of(room, looks, self.settings.height_m, x, y, np.cos(azimuth), np.sin(azimuth))
        colour, shade = self._look_up(room, looks, table, x, y, pose.heading_rad)
        smear = abs(turn_rad_s) * WIDTH / (2 * self.settings.half_width_rad)  # pixels a second
        return self._sensor.expose(colour.take(self._back), shade.take(self._back), smear)

    def _lens_position(self, room: Room, pose: Pose) -> tuple[float, float]:
        """Just inside the room, should the lens of a robot at a wall come to lie on it."""
        x = pose.x_m + FORWARD_M * math.cos(pose.heading_rad)
        y = pose.y_m + FORWARD_M * math.sin(pose.heading_rad)
        return min(max(x, 1e-3), room.width_m - 1e-3), min(max(y, 1e-3), room.depth_m - 1e-3)

    def _look_up(
        self, room: Room, looks: Surfaces, table: Table, x: float, y: float, heading: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(pixels,) uint32 RGBX and (pixels,) float32 brightness, in sorted order."""
        starts = np.searchsorted(self._key, table.starts)
        run = np.diff(starts, append=self._key.size)
        run[0] += starts[0]
        kind = np.repeat(table.kind, run)  # (pixels,)
        shade = np.repeat(table.shade, run)
        colour = np.empty(kind.size, np.uint32)
        at = np.flatnonzero(kind == FLOOR)
        colour[at] = looks.floor.take(self._floor_index(room, looks, at, x, y, heading))
        if looks.gloss:
            shade[at] += self._window(looks, heading)[self._column[at]] * self._mirror[at]
        at = np.flatnonzero(kind == FACE)
        of = np.flatnonzero(table.kind == FACE)
        foot, climb, begin = (np.repeat(part[of], run[of]) for part in (table.foot, table.climb, table.begin))
        row = foot + climb * self._tangent[at]
        row += np.minimum(climb * np.float32(0.015), 1) * self._blend[at]  # up close a texel covers many pixels
        np.clip(row, 0, ROWS - 1, out=row)
        begin += row.astype(np.intp)
        colour[at] = looks.atlas.take(begin)
        at = np.flatnonzero(kind == LEVEL)
        of = np.flatnonzero(table.kind == LEVEL)
        rise, begin = (np.repeat(part[of], run[of]) for part in (table.rise, table.begin))
        colour[at] = looks.atlas.take(begin + self._level_index(rise, at, x, y, heading))
        return colour, shade

    def _floor_index(
        self, room: Room, looks: Surfaces, at: np.ndarray, x: float, y: float, heading: float
    ) -> np.ndarray:
        cos, sin = np.float32(math.cos(heading)), np.float32(math.sin(heading))
        ahead, left, scale, far = (
            self._floor_ahead[at],
            self._floor_left[at],
            self._floor_scale[at],
            self._floor_far[at],
        )
        column = ahead * cos - left * sin + scale * np.float32(x)
        row = ahead * sin + left * cos + scale * np.float32(y)
        # A ray that slips past a wall's foot by rounding stays on the floor.
        last = scale * np.float32(room.width_m) - 1, scale * np.float32(room.depth_m) - 1
        column, row = np.clip(column, 0, last[0]), np.clip(row, 0, last[1])
        row += far * np.float32(looks.floor_rows)
        index: np.ndarray = row.astype(np.intp) * looks.floor_stride + column.astype(np.intp)
        return index

    def _level_index(self, rise: np.ndarray, at: np.ndarray, x: float, y: float, heading: float) -> np.ndarray:
        """Within a picture that lies flat, north up, and repeats."""
        tangent = self._tangent[at]
        reach = np.clip(rise / np.where(np.abs(tangent) < 1e-4, np.float32(1e-4), tangent), 0, 10) * np.float32(300)
        cos, sin = np.float32(math.cos(heading)), np.float32(math.sin(heading))
        ahead, left = reach * self._cos[at], reach * self._sin[at]
        column = (ahead * cos - left * sin + np.float32(300 * x)).astype(np.intp) & (ROWS - 1)
        row = (ahead * sin + left * cos + np.float32(300 * y)).astype(np.intp) & (ROWS - 1)
        index: np.ndarray = column * ROWS + row
        return index

    def _window(self, looks: Surfaces, heading: float) -> np.ndarray:
        """(COLUMNS,) float32: how much of a bright window each column of the floor mirrors."""
        sun = math.atan2(float(looks.sun[1]), float(looks.sun[0]))
        apart = np.remainder(self._column_azimuth + (heading - sun + math.pi), 2 * math.pi) - math.pi
        return (3.0 * looks.gloss * np.exp(-((apart / _MIRROR_WIDTH_RAD) ** 2))).astype(np.float32)
