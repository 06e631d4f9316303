"""Variations of the training images, drawn anew each time: what differs between robots and rooms, and not the label.

    mirror   left and right are alike to `blocked`
    move     crop, shift and tilt: a camera never sits the same way twice
    light    exposure, contrast, white balance, colours down to grey
    colours  the mean and spread of each colour of another image of the batch: of another room, robot or simulator
    tint     the pink or dark corners of a Jetbot's lens, or of another's
    blur     of a robot that turns, or of a lens that is not in focus
    noise    of a small sensor in a dark room

Nothing turns upside down and nothing moves far: how low the obstacle stands in the picture is how near it is.
What each of them gives in rooms not seen is measured by `make bench-ablation`; docs/training.md has the table.
"""

import math
from typing import Collection

import torch
from torch.nn import functional

from training.settings import AUGMENTATIONS

SHIFT = 0.08  # share of half the picture, to each side
ZOOM = (0.75, 1.1)  # under 1: a part of the picture fills it
TILT_DEG = 8.0
# Standard deviations of the logarithm of a factor: twice as bright is as likely as half.
EXPOSURE, WHITE_BALANCE = 0.2, 0.11
CONTRAST = (0.6, 1.4)
SATURATION = (0.3, 1.5)
GREY = 0.3  # share of images without colour: what it tells of the floor here is wrong in the next room
COLOURS = 0.5  # share of images that take on another's, by a part drawn from 0..1
TINT = 0.1  # at the middle of an edge, standard deviation of the relative change per channel
DARK_CORNERS = 0.2  # at most, likewise
BLURRED = 0.25  # share of images
NOISE = 0.06  # at most, of white


def batch_of(
    pixels: torch.Tensor, size: int, generator: torch.Generator, kinds: Collection[str] = AUGMENTATIONS
) -> torch.Tensor:
    """One varied batch.

    Args:
        pixels: (N, H, W, 3) uint8.
        size: height and width of the result; smaller pictures train faster.
        generator: where the randomness comes from.
        kinds: which of AUGMENTATIONS.

    Returns:
        (N, 3, size, size) float32 in 0..255.
    """
    images = as_images(pixels)
    if size * 2 <= images.shape[-1]:
        images = functional.avg_pool2d(images, 2)  # or every other pixel would be passed over
    if "mirror" in kinds or "move" in kinds or images.shape[-1] != size:
        images = _move(images, size, generator, "mirror" in kinds, "move" in kinds)
    if "colours" in kinds:
        images = _recolour(images, generator)
    if "light" in kinds or "tint" in kinds:
        images = _relight(images, generator, "light" in kinds, "tint" in kinds)
    if "blur" in kinds:
        images = _blur(images, generator)
    if "noise" in kinds:
        strength = torch.rand(len(images), 1, 1, 1, generator=generator) * NOISE * 255
        images = torch.addcmul(images, strength, torch.randn(images.shape, generator=generator))
    return images.clamp_(0, 255).contiguous(memory_format=torch.channels_last)


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last in memory: the faster layout for convolutions."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)


def _between(low: float, high: float, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _move(images: torch.Tensor, size: int, generator: torch.Generator, mirror: bool, move: bool) -> torch.Tensor:
    """Mirror, shift, crop, tilt and resize in one resampling."""
    count, moved = len(images), float(move)
    side = torch.where(torch.rand(count, generator=generator) < 0.5 * mirror, -1.0, 1.0)
    zoom = 1 + moved * (_between(ZOOM[0], ZOOM[1], count, generator) - 1)
    angle = moved * _between(-TILT_DEG, TILT_DEG, count, generator) * math.pi / 180
    # Rows of the 2x3 matrices that lead from the result's coordinates (-1..1) to the picture's.
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = side * zoom * torch.cos(angle), -zoom * torch.sin(angle)
    theta[:, 1, 0], theta[:, 1, 1] = side * zoom * torch.sin(angle), zoom * torch.cos(angle)
    theta[:, :, 2] = moved * SHIFT * (torch.rand(count, 2, generator=generator) * 2 - 1)
    grid = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recolour(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each channel's mean and spread become those of another image, in part (MixStyle, Zhou et al. 2021, in pixels)."""
    count = len(images)
    other = torch.randperm(count, generator=generator)
    part = torch.rand(count, 1, 1, 1, generator=generator)
    part = part * (torch.rand(count, 1, 1, 1, generator=generator) < COLOURS)
    mean, spread = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True).clamp(min=1.0)
    factor = torch.lerp(spread, spread[other], part) / spread
    return (images - mean) * factor + torch.lerp(mean, mean[other], part)


def _relight(images: torch.Tensor, generator: torch.Generator, light: bool, tint: bool) -> torch.Tensor:
    """Another light, camera and lens; what gets too bright or too dark is cut off by the caller."""
    count, size = len(images), images.shape[-1]

    def factor(deviation: float, channels: int) -> torch.Tensor:
        return torch.exp(deviation * torch.randn(count, channels, 1, 1, generator=generator))

    def one(low: float, high: float) -> torch.Tensor:
        return _between(low, high, count, generator).view(-1, 1, 1, 1)

    if tint:
        across = torch.linspace(-1, 1, size)
        centre = 0.15 * torch.randn(count, 2, 1, generator=generator)
        squares = (across - centre) ** 2  # (N, 2, size): of x and of y
        radius2 = squares[:, 1].unsqueeze(2) + squares[:, 0].unsqueeze(1)
        change = TINT * torch.randn(count, 3, 1, 1, generator=generator) - one(0, DARK_CORNERS)
        images = images * (1 + change * radius2.clamp_(max=2.0).unsqueeze(1)).clamp_(min=0.2)
    if light:
        images = images * (factor(WHITE_BALANCE, 3) * factor(EXPOSURE, 1))
        colour = torch.where(one(0, 1) < GREY, torch.zeros(1), one(*SATURATION))
        images = torch.lerp(images.mean(dim=1, keepdim=True), images, colour)
        images = torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, one(*CONTRAST))
    return images


def _blur(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Some of the images, sideways or all around."""
    chosen = torch.rand(len(images), generator=generator) < BLURRED
    length = int(torch.randint(3, 8, (1,), generator=generator)) | 1  # pixels, odd
    window = (1, length) if torch.rand(1, generator=generator) < 0.5 else (3, 3)
    if not chosen.any():
        return images
    images = images.clone()
    edge = (window[1] // 2, window[1] // 2, window[0] // 2, window[0] // 2)
    images[chosen] = functional.avg_pool2d(functional.pad(images[chosen], edge, mode="reflect"), window, stride=1)
    return images
