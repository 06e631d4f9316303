"""Variations of the training images, drawn anew each time: what changes in a room without changing the label.

Mirrored (left and right are alike to `blocked`), moved and zoomed a little (a camera never sits the same way twice),
another brightness and white balance. Nothing turns upside down and nothing moves far: how low the obstacle stands in
the picture is how near it is.
"""

import math

import torch
from torch.nn import functional

MOVE = 0.06  # share of the picture, to each side
ZOOM = 0.08
BRIGHTNESS = 0.3  # share of the value, each way
CONTRAST = 0.2
WHITE_BALANCE = 0.15  # of the value, per channel
HUE_RAD = 0.5  # each way: floors and walls come in many colours
SATURATION = (0.5, 1.3)  # times; 0 is grey


def batch_of(pixels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """One varied batch.

    Args:
        pixels: (N, H, W, 3) uint8.
        size: height and width of the result; smaller pictures train faster.
        generator: where the randomness comes from.

    Returns:
        (N, 3, size, size) float32 in 0..255.
    """
    images = as_images(pixels)
    return _relight(_move(images, size, generator), generator)


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last in memory: the faster layout for convolutions."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)


def _move(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Mirror, shift, zoom and resize in one resampling."""
    count = len(images)

    def within(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    zoom = 1 + within(ZOOM)
    # Rows of the 2x3 matrices that lead from the result's coordinates (-1..1) to the picture's.
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = zoom * mirror, within(2 * MOVE)
    theta[:, 1, 1], theta[:, 1, 2] = zoom, within(2 * MOVE)
    if size * 2 <= images.shape[-1]:
        images = functional.avg_pool2d(images, 2)  # or every other pixel would be passed over
    grid = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _relight(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Another light and other colours, as one 3x3 matrix and one offset per image."""
    count = len(images)

    def between(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    balance = torch.diag_embed(between(1 - WHITE_BALANCE, 1 + WHITE_BALANCE, 3))
    colours = _hue_rotation(between(-HUE_RAD, HUE_RAD), between(*SATURATION))
    contrast = between(1 - CONTRAST, 1 + CONTRAST, 1, 1)
    matrix = contrast * between(1 - BRIGHTNESS, 1 + BRIGHTNESS, 1, 1) * (balance @ colours)  # (N, 3, 3)
    middle = images.mean(dim=(1, 2, 3)).view(count, 1, 1)
    offset = (1 - contrast) * middle
    flat = torch.baddbmm(offset, matrix, images.flatten(2))
    return flat.view(images.shape).clamp_(0, 255).contiguous(memory_format=torch.channels_last)


def _hue_rotation(angle: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """(N, 3, 3) matrices that turn colours about the grey axis and stretch them from it; grey stays as it is."""
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosine, sine = (f(angle).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    return grey + saturation.view(-1, 1, 1) * (cosine * (torch.eye(3) - grey) + sine * across)
