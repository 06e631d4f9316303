"""The sensor: what it makes of the light. Vignette and colour shading, exposure that adapts, smear, softness, noise.

Whole numbers where it can be, so that the same seed gives the same pixels on any machine.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from serving.preprocess import HEIGHT, WIDTH

_BRIGHTEST = 1.6  # share of its colour that a lit surface may have
_LEAST_SMEAR_PX = 0.4
_NOISE_SHIFTS = 65536  # different places in the noise at which a frame's may begin


@dataclass(frozen=True)
class SensorSettings:
    """One sensor, and how the camera's firmware drives it."""

    target: float = 110.0  # mean grey level that the exposure aims at
    adaptation: float = 0.8  # how far it gets there: 0 is a fixed exposure, 1 always hits the target
    shutter_s: float = 0.02
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of red, green, blue
    tint: tuple[float, float, float] = (1.08, 0.92, 1.02)  # the same, at the corners: the module's colour shading
    vignette: float = 0.3  # light lost in the corners, share
    contrast: float = 1.0  # exponent: above 1 darkens the shadows
    haze: float = 0.0  # grey levels that stray light adds
    softness: int = 1  # how often neighbouring pixels blend: 1 to 3
    noise: float = 3.0  # standard deviation, grey levels
    chassis: float = 0.0  # share of the lower corners that the robot's own parts hide


def make_sensor_settings(rng: np.random.Generator, wide: bool) -> SensorSettings:
    """A sensor as one robot's might be; the wide module is the one with pink edges."""
    pink = float(rng.uniform(0.05, 0.34)) if wide and rng.random() < 0.75 else float(rng.uniform(0.0, 0.05))
    warm = float(rng.normal(0.0, 0.07))
    dim = bool(rng.random() < 0.15)
    return SensorSettings(
        target=float(rng.uniform(60, 90) if dim else rng.uniform(90, 165)),
        adaptation=float(rng.uniform(0.5, 0.95)),
        shutter_s=float(rng.uniform(0.008, 0.05)),
        white_balance=(1.0 + warm, 1.0 - 0.2 * pink, 1.0 - warm),
        tint=(1.0 + 0.7 * pink, 1.0 - pink, 1.0 + 0.35 * pink),
        vignette=float(rng.uniform(0.0, 0.4)),
        contrast=float(rng.uniform(0.8, 1.25)),
        haze=float(rng.uniform(0, 30)) if rng.random() < 0.4 else 0.0,
        softness=int(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15))),
        noise=float(rng.uniform(7, 16) if dim else rng.uniform(1.0, 6.0)),
        chassis=float(rng.uniform(0.04, 0.12)) if wide and rng.random() < 0.3 else 0.0,
    )


class Sensor:
    """One sensor; its tables are computed once.

    Args:
        settings: what it is like.
        off_centre: (pixels,) 0 in the middle of the frame, 1 in its corners.
        seed: of its noise.
    """

    def __init__(self, settings: SensorSettings, off_centre: np.ndarray, seed: int) -> None:
        self.settings = settings
        self.pad = settings.softness  # pixels that it needs around the frame
        self._gain, self._brightest = self._lens_gain(off_centre)
        self._rng = np.random.default_rng([seed, 3])
        self._light = np.empty_like(self._gain)
        self._noise = _noise(np.random.default_rng([seed, 4]), settings.noise)

    def expose(self, colour: np.ndarray, shade: np.ndarray, smear_px_s: float = 0.0) -> np.ndarray:
        """A frame from what each pixel looks at.

        Args:
            colour: (HEIGHT + 2 * pad, WIDTH + 2 * pad) uint32 RGBX.
            shade: the same shape, float32 brightness.
            smear_px_s: how fast the picture moves sideways, pixels a second.

        Returns:
            (224, 224, 3) uint8, RGB.
        """
        # 8-bit colour times 8-bit brightness times 8-bit gain, kept to 12 bits.
        bright = np.minimum(shade * np.float32(255 / _BRIGHTEST), 255).astype(np.uint64) * np.uint64(0x0001000100010001)
        light = np.multiply(colour.view(np.uint8), bright.view(np.uint16), out=self._light)
        light >>= 8
        light *= self._gain
        light >>= 4
        soft = _softened(light.reshape(*colour.shape, 4), self.settings.softness)
        picture = Image.frombuffer("RGBX", (WIDTH, HEIGHT), (soft >> 4).astype(np.uint8), "raw", "RGBX", 0, 1)
        half_smear = min(12.0, 0.5 * smear_px_s * self.settings.shutter_s)
        if half_smear > _LEAST_SMEAR_PX:
            picture = picture.filter(ImageFilter.BoxBlur((half_smear, 0)))
        plain = picture.convert("RGB")
        mean = int(np.asarray(plain)[::8, ::8, 1].sum(dtype=np.int64)) / (HEIGHT // 8 * (WIDTH // 8))
        developed = np.asarray(plain.point(self._curve(mean)))
        start = 3 * int(self._rng.integers(_NOISE_SHIFTS))
        noisy = developed + self._noise[start : start + developed.size].reshape(developed.shape)
        np.clip(noisy, 0, 255, out=noisy)
        return noisy.astype(np.uint8)

    def _curve(self, mean: float) -> list[int]:
        """What each grey level of red, green and blue becomes; the exposure follows the frame's mean."""
        brightest = self._brightest * _BRIGHTEST
        wanted = self.settings.target / max(mean * brightest, 4.0)
        gain = min(max(wanted**self.settings.adaptation, 0.35), 3.5) * brightest
        levels = np.arange(256)[None, :] * (np.array(self.settings.white_balance)[:, None] * (gain / 255))
        haze = self.settings.haze
        curve = np.minimum(levels, 1.0) ** self.settings.contrast * (255 - haze) + haze
        found: list[int] = np.rint(curve).astype(int).ravel().tolist()
        return found

    def _lens_gain(self, off_centre: np.ndarray) -> tuple[np.ndarray, float]:
        """Light lost off the axis, the tint that grows with it, the robot's own parts.

        Returns:
            (padded rows, padded columns * 4) uint16 in 0..255, and the gain that 255 stands for.
        """
        edge = off_centre.reshape(HEIGHT, WIDTH, 1) ** 2
        gain = (1.0 - self.settings.vignette * edge) * (1.0 + (np.array([*self.settings.tint, 1.0]) - 1.0) * edge)
        row, column = np.mgrid[0:HEIGHT, 0:WIDTH]
        from_corner = (HEIGHT - 1 - row) / HEIGHT + np.minimum(column, WIDTH - 1 - column) / WIDTH
        gain *= np.where(from_corner < self.settings.chassis, 0.12, 1.0)[..., None]
        brightest = float(gain.max())
        padded = np.pad(np.rint(gain * (255 / brightest)), ((self.pad, self.pad), (self.pad, self.pad), (0, 0)), "edge")
        return padded.astype(np.uint16).reshape(padded.shape[0], -1), brightest


def _softened(light: np.ndarray, times: int) -> np.ndarray:
    """Each value becomes a quarter, a half, a quarter of three neighbours, both ways; smaller by one pixel a side.

    Works in place, on the rows as one line: what that makes of the last two pixels of a row is cut off.
    """
    rows, columns, channels = light.shape
    flat, row = light.reshape(-1), columns * channels
    for _ in range(times):
        for apart in (channels, channels, row, row):
            flat = np.add(flat[:-apart], flat[apart:], out=flat[:-apart])
        flat >>= 4
    return light[: rows - 2 * times, : columns - 2 * times]


def _noise(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """(values,) int16: noise for a frame and a bit, mostly of brightness, a little of colour."""
    pixels = HEIGHT * WIDTH + _NOISE_SHIFTS
    grey = rng.normal(0, 0.8 * deviation, (pixels, 1))
    return np.rint(grey + rng.normal(0, 0.6 * deviation, (pixels, 3))).astype(np.int16).ravel()
