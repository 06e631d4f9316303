"""Pictures of a suite for people: every room from above with the ways driven, and one drive as an animated clip."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from serving.errors import OperatorError
from simulator.drive import Moment, Network, drive
from simulator.furnish import make_room
from simulator.settings import SuiteSettings
from simulator.suite import Episode, start_arena
from simulator.topview import MARKS, At, draw_robot, plan

_PATHS = ((20, 90, 200), (230, 120, 0), (120, 40, 160), (0, 130, 130))  # one colour a start place
_HIT, _TEXT, _WHITE = (220, 20, 20), (20, 20, 20), (255, 255, 255)
_MOST_COLUMNS = 10
_CLIP_SIDE, _CLIP_FRAMES_PER_S, _CLIP_S, _CLIP_COLOURS = 192, 4, 15.0, 64


def draw_paths(episodes: Iterable[Episode], out: Path, site: int | None = None) -> None:
    """Writes a PNG: a tile a room, the ways from each start place in its colour, collisions as red crosses.

    Raises:
        OperatorError: the file cannot be written.
    """
    rooms: dict[int, list[Episode]] = {}
    for episode in sorted(episodes, key=lambda one: (one.seed, one.start)):
        rooms.setdefault(episode.seed, []).append(episode)
    columns = min(_MOST_COLUMNS, max(2, round(len(rooms) ** 0.5 * 1.3)))
    side = 300 if len(rooms) <= 20 else 200
    lines = -(-len(rooms) // columns)
    sheet = Image.new("RGB", (columns * side, lines * (side + 14)), _WHITE)
    for number, driven in enumerate(rooms.values()):
        at = (number % columns * side, number // columns * (side + 14))
        sheet.paste(_tile(driven, side, site), at)
    _write(out, lambda file: sheet.save(file, "PNG"))


def _tile(driven: Sequence[Episode], side: int, site: int | None) -> Image.Image:
    picture, at = plan(make_room(driven[0].seed, site), side)
    for episode in driven:
        draw_path(picture, at, episode.path.tolist(), _PATHS[episode.start % len(_PATHS)])
        for x, y in episode.hits.tolist():
            _cross(picture, at(x, y))
    tile = Image.new("RGB", (side, side + 14), _WHITE)
    tile.paste(picture, (0, 14))
    metres = sum(one.counts.distance_m for one in driven)
    said = f"room {driven[0].seed}: {metres:.1f} m, {_collisions(sum(one.counts.collisions for one in driven))}"
    ImageDraw.Draw(tile).text((10, 5), said, _TEXT, ImageFont.load_default(12))
    return tile


def _collisions(count: int) -> str:
    return f"{count} collision{'' if count == 1 else 's'}"


def draw_path(picture: Image.Image, at: At, path: Sequence[Sequence[float]], colour: tuple[int, int, int]) -> None:
    """Adds a way as a line with a dot where it begins."""
    pen = ImageDraw.Draw(picture)
    points = [at(x, y) for x, y in path]
    pen.line([points[0], *points], _WHITE, 4, joint="curve")  # so that it shows on a dark floor
    pen.line([points[0], *points], colour, 2, joint="curve")
    x, y = points[0]
    pen.ellipse([x - 4, y - 4, x + 4, y + 4], colour, _WHITE)


def _cross(picture: Image.Image, place: tuple[float, float]) -> None:
    x, y = place
    pen = ImageDraw.Draw(picture)
    for colour, width in ((_WHITE, 5), (_HIT, 3)):
        pen.line([x - 5, y - 5, x + 5, y + 5], colour, width)
        pen.line([x - 5, y + 5, x + 5, y - 5], colour, width)


def make_clip(network: Network, suite: SuiteSettings, episodes: Iterable[Episode], out: Path) -> Episode:
    """Drives the episode with the most collisions once more, and writes it as an animated GIF, as fast as it was.

    Returns:
        The episode that it shows.

    Raises:
        OperatorError: the file cannot be written.
    """
    shown = max(episodes, key=lambda one: (one.counts.collisions, -one.seed, -one.start))
    arena = start_arena(shown.seed, shown.start, site=suite.site)
    every = round(suite.frames_per_s / _CLIP_FRAMES_PER_S)
    pictures: list[Image.Image] = []
    path: list[tuple[float, float]] = []
    for number, moment in enumerate(drive(arena, network, suite)):
        if moment.time_s >= min(suite.seconds, _CLIP_S):
            break
        path.append(moment.pose[:2])
        if number % every == 0:
            picture, at = plan(arena.room, _CLIP_SIDE)
            draw_path(picture, at, path, _PATHS[0])
            pictures.append(side_by_side(picture, at, moment, suite.safety_distance_m, _CLIP_SIDE))
    # One palette for all, and no dither: both keep the file small. The marks must keep their colours.
    palette = _of_all(pictures).quantize(_CLIP_COLOURS)
    first, *rest = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    pause_ms = 1000 // _CLIP_FRAMES_PER_S
    _write(out, lambda file: first.save(file, "GIF", save_all=True, append_images=rest, duration=pause_ms, loop=0))
    return shown


def _of_all(pictures: Sequence[Image.Image]) -> Image.Image:
    """Some of the pictures below each other, and the colours of the marks, as many pixels of each."""
    chosen = pictures[:: max(1, len(pictures) // 4)]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, (len(chosen) + 1) * height))
    for number, one in enumerate(chosen):
        sheet.paste(one, (0, number * height))
    step = width // len(MARKS)
    for number, colour in enumerate(MARKS):
        sheet.paste(colour, (number * step, len(chosen) * height, (number + 1) * step, (len(chosen) + 1) * height))
    return sheet


def side_by_side(picture: Image.Image, at: At, moment: Moment, safety_distance_m: float, side: int) -> Image.Image:
    """What the robot sees, with what it makes of it, and beside that the plan `picture` with the robot in it."""
    both = Image.new("RGB", (2 * side, side + 20), _WHITE)
    both.paste(Image.fromarray(moment.frame).resize((side, side)), (0, 0))
    draw_robot(picture, at, moment.pose, moment.blocked, safety_distance_m)
    both.paste(picture, (side, 0))
    pen = ImageDraw.Draw(both)
    pen.rectangle([0, side, round(side * moment.action.p_blocked), side + 19], (240, 150, 140))
    font = ImageFont.load_default(12)
    pen.text((6, side + 3), f"blocked {moment.action.p_blocked:4.0%}   {moment.action.motion.value}", _TEXT, font)
    said = f"{moment.time_s:5.1f} s   {moment.distance_m:.1f} m   {_collisions(moment.collisions)}"
    pen.text((side + 6, side + 3), said, _HIT if moment.collisions else _TEXT, font)
    return both


def _write(out: Path, save: Callable[[Path], None]) -> None:
    draft = out.with_name(f".{out.name}.draft")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(draft)
        os.replace(draft, out)
    except OSError as problem:
        raise OperatorError(f"cannot write {out}: {problem.strerror or problem}") from None
