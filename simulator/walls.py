"""Walls: plaster, panels, brick or curtain, with skirting, doors, sockets, bright windows and whatever stands before
them. Painted once per wall; rows from the floor upward, 1 cm each, columns along the wall.
"""

import numpy as np

from simulator.textures import any_colour, clutter, smooth_noise, speckle, varied

ROWS = 128  # 1.28 m: what is higher shows the last row
COLUMNS = 512  # 5.12 m
TEXELS_PER_M = 100.0

_PLASTER = ((222, 218, 210), (204, 208, 210), (214, 202, 178), (190, 198, 186), (236, 234, 230), (176, 172, 168))
_BOARDS = ((236, 234, 230), (224, 222, 216), (150, 108, 70), (96, 70, 50), (64, 60, 58))
_DOORS = ((232, 230, 226), (196, 192, 186), (150, 110, 76), (110, 78, 52), (84, 84, 88))


def paint_all(rng: np.random.Generator) -> list[np.ndarray]:
    """Four walls of one house, (ROWS, COLUMNS, 3) float32 each; what stands before them differs."""
    colour = varied(rng, _PLASTER[int(rng.integers(len(_PLASTER)))], 8)
    if rng.random() < 0.12:
        colour = any_colour(rng)
    board = varied(rng, _BOARDS[int(rng.integers(len(_BOARDS)))], 6)
    board_rows = int(rng.integers(3, 15))
    busy = float(rng.choice((0.15, 0.5, 0.9), p=(0.4, 0.35, 0.25)))  # a bare room, a home, a laboratory
    return [_wall(rng, colour, board, board_rows, busy) for _ in range(4)]


def pillar(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """A wall without anything before it, of the colours of another."""
    picture = np.empty_like(like)
    picture[:] = like[-1, :1]
    picture[: ROWS // 12] = varied(rng, _BOARDS[int(rng.integers(len(_BOARDS)))], 6)
    return _lit(rng, picture)


def _wall(rng: np.random.Generator, colour: np.ndarray, board: np.ndarray, board_rows: int, busy: float) -> np.ndarray:
    picture = np.empty((ROWS, COLUMNS, 3), np.float32)
    picture[:] = colour if rng.random() < 0.85 else any_colour(rng)
    chance = rng.random()
    if chance < 0.10:
        _brick(rng, picture)
    elif chance < 0.18:
        fold = smooth_noise(rng, 1, COLUMNS, int(rng.integers(6, 16)))
        picture *= (0.6 + 0.7 * fold)[..., None]
    picture[:board_rows] = board
    if board_rows > 5 and rng.random() < 0.6:
        picture[board_rows - 2] *= np.float32(1.06)
    picture[board_rows] *= np.float32(0.8)  # the joint above the board
    if rng.random() < 0.4:
        _socket(rng, picture)
    if rng.random() < 0.45:
        _door(rng, picture, board_rows)
    if rng.random() < 0.3:
        _window(rng, picture)
    for _ in range(3):
        if rng.random() < busy:
            _stand_before(rng, picture)
    return _lit(rng, picture)


def _lit(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Uneven light, darker towards the floor and the corners, and a little grain."""
    picture *= (0.8 + 0.4 * smooth_noise(rng, ROWS, COLUMNS, 120, 60))[..., None]
    foot = 1.0 - rng.uniform(0.1, 0.4) * np.exp(-np.arange(ROWS) / rng.uniform(6.0, 30.0))
    picture *= foot.astype(np.float32)[:, None, None]
    picture *= speckle(rng, ROWS, COLUMNS, 0.01)[..., None]
    picture[0] *= np.float32(0.55)  # the gap at the floor
    return picture


def _span(rng: np.random.Generator, narrowest: int, widest: int) -> slice:
    width = int(rng.integers(narrowest, widest))
    left = int(rng.integers(0, COLUMNS - width))
    return slice(left, left + width)


def _brick(rng: np.random.Generator, picture: np.ndarray) -> None:
    high, wide = int(rng.integers(6, 14)), int(rng.integers(14, 36))
    row, column = (
        np.arange(ROWS)[:, None],
        np.arange(COLUMNS)[None, :] + (np.arange(ROWS) // high % 2 * wide // 2)[:, None],
    )
    stone = row // high * 53 + column // wide
    picture *= rng.normal(0.95, 0.1, int(stone.max()) + 1).astype(np.float32)[stone][..., None]
    picture[(row % high == 0) | (column % wide == 0)] *= np.float32(0.7)


def _socket(rng: np.random.Generator, picture: np.ndarray) -> None:
    foot, left = int(rng.integers(18, 40)), int(rng.integers(0, COLUMNS - 12))
    picture[foot : foot + 9, left : left + 9] = varied(rng, (238, 236, 230), 6)
    picture[foot + 3 : foot + 6, left + 3 : left + 6] *= np.float32(0.6)


def _door(rng: np.random.Generator, picture: np.ndarray, board_rows: int) -> None:
    span = _span(rng, 70, 100)
    frame = slice(max(0, span.start - 7), span.stop + 7)
    picture[:, frame] = varied(rng, _BOARDS[int(rng.integers(len(_BOARDS)))], 6)
    door = varied(rng, _DOORS[int(rng.integers(len(_DOORS)))], 8)
    picture[:, span] = door
    picture[:, span.start] *= np.float32(0.5)
    picture[:, span.stop - 1] *= np.float32(0.5)
    if rng.random() < 0.6:  # panels
        inner = slice(span.start + 14, span.stop - 14)
        for low, high in ((18, 62), (74, 124)):
            picture[low:high, inner] *= np.float32(0.93)
            picture[[low, high], inner] *= np.float32(0.75)
    gap = int(rng.integers(1, 4))
    picture[:gap, span] = 255 if rng.random() < 0.25 else 18  # light or darkness from the next room


def _window(rng: np.random.Generator, picture: np.ndarray) -> None:
    """A window or a glazed door; far brighter than the room, so that it bleaches the picture."""
    span = _span(rng, 60, 220)
    low = int(rng.choice((6, 30, 70)))
    glass = np.float32(rng.uniform(235, 330)) * np.array((0.97, 1.0, 1.03), np.float32)
    picture[low:, span] = glass * (0.75 + 0.4 * smooth_noise(rng, ROWS - low, span.stop - span.start, 9))[..., None]
    if rng.random() < 0.5:
        picture[low::4, span] *= np.float32(0.72)  # blinds
    for bar in range(span.start, span.stop, int(rng.integers(30, 70))):
        picture[low:, bar : bar + 4] = varied(rng, (120, 110, 100), 30)


def _stand_before(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Furniture and what people put along a wall: dark below, coloured above."""
    span = _span(rng, 50, 260)
    width, top = span.stop - span.start, int(rng.integers(25, ROWS))
    chance = rng.random()
    if chance < 0.45:
        picture[:top, span] = clutter(rng, top, width, int(rng.integers(15, 70)), rng.uniform(0.3, 0.9))
    elif chance < 0.8:  # a bed, a bench, a cupboard on legs: a front above, a dark hollow below
        hollow = int(rng.integers(4, max(6, top // 2)))
        picture[:hollow, span] = clutter(rng, hollow, width, int(rng.integers(2, 16)), 0.35)
        front = any_colour(rng)
        picture[hollow:top, span] = front
        picture[hollow:top, span.start : span.stop : int(rng.integers(30, 80))] *= np.float32(0.6)
    else:  # a curtain or a banner
        fold = smooth_noise(rng, 1, width, int(rng.integers(5, 14)))
        picture[int(rng.integers(0, 10)) :, span] = any_colour(rng) * (0.5 + 0.8 * fold)[..., None]
