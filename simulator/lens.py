"""Lenses: in which direction each pixel of a frame looks.

The Jetbot's usual module, an IMX219 with 160 degrees across the diagonal, is equidistant (the angle from the axis grows
linearly with the distance from the centre), its 4:3 squeezed into a square. Many Jetbots have a plainer lens, which
keeps straight lines straight.
"""

import math
from typing import NamedTuple

import numpy as np

from serving.preprocess import HEIGHT, WIDTH

WIDE_HALF_WIDTH_RAD = math.radians(64.0)  # 160 degrees across the diagonal of a 4:3 sensor
WIDE_HALF_HEIGHT_RAD = math.radians(48.0)


class Rays(NamedTuple):
    """One per pixel, row by row; seen from the robot, which looks along the azimuth zero."""

    azimuth: np.ndarray  # (pixels,) float64, radians, left positive
    tangent: np.ndarray  # (pixels,) float64, of the elevation, up positive
    off_centre: np.ndarray  # (pixels,) float64, 0 in the middle of the frame, 1 in its corners


def rays(half_width_rad: float, half_height_rad: float, straight: bool, pitch_rad: float) -> Rays:
    """Where the pixels of a lens look.

    Args:
        half_width_rad: from the middle of the frame to its left or right edge.
        half_height_rad: from the middle to the upper or lower edge.
        straight: whether straight lines stay straight; else the lens is equidistant.
        pitch_rad: of the camera, down positive.
    """
    right, down = _positions()
    if straight:
        forward = np.ones_like(right)
        left, up = -right * math.tan(half_width_rad), -down * math.tan(half_height_rad)
    else:
        angle_right, angle_down = right * half_width_rad, down * half_height_rad
        off_axis = np.hypot(angle_right, angle_down)
        spread = np.sin(off_axis) / np.maximum(off_axis, 1e-12)
        forward, left, up = np.cos(off_axis), -angle_right * spread, -angle_down * spread
    ahead = forward * math.cos(pitch_rad) + up * math.sin(pitch_rad)
    above = up * math.cos(pitch_rad) - forward * math.sin(pitch_rad)
    azimuth, tangent = np.arctan2(left, ahead), above / np.hypot(ahead, left)
    return Rays(azimuth.ravel(), tangent.ravel(), (np.hypot(right, down) / math.sqrt(2)).ravel())


def _positions() -> tuple[np.ndarray, np.ndarray]:
    """Right and down, -1..1: a place within each pixel that differs among neighbours.

    The camera's softness, which comes after, blends neighbours: so edges are smooth for one ray a pixel.
    """
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    shift_right = np.array([[-0.375, 0.125], [-0.125, 0.375]])[rows % 2, columns % 2]
    shift_down = np.array([[-0.125, -0.375], [0.375, 0.125]])[rows % 2, columns % 2]
    right = (columns + 0.5 + shift_right) / WIDTH * 2 - 1
    down = (rows + 0.5 + shift_down) / HEIGHT * 2 - 1
    return right, down
