"""Labelled sessions out of the arena, in the form that a person with a Jetbot would hand in.

The robot is set down at random places of one room; each place gives a frame and, from geometry, its label. Half the
frames are `blocked`, half `free`; places about which one could argue and places like an earlier one are left out.
The same arguments give the same bytes (with the same versions of NumPy and Pillow).
"""

import io
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from serving.contracts.sessions import LABELS, SESSION_FILE, Session
from serving.errors import OperatorError
from serving.settings import convert
from simulator import labels
from simulator.arena import Arena
from simulator.mats import Path as Road
from simulator.room import ROBOT_RADIUS_M, Pose
from simulator.settings import FIRST_JUDGING_SEED
from simulator.surfaces import surfaces_of

JPEG_QUALITY = 85
SAFETY_DISTANCES_M = (0.1, 1.0)  # allowed
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_ALIKE_M, _ALIKE_RAD = 0.10, math.radians(15.0)  # two places nearer than both show nearly the same
_ANYWHERE = 0.5  # share of the places tried that have nothing to do with a thing
_ALONG_A_ROAD = 0.4  # share of the places tried on a printed road, where there is one
_TRIES_PER_IMAGE = 400


def make_session(
    path: Path,
    *,
    session_id: str,
    source: str,
    seed: int,
    images: int,
    safety_distance_m: float = 0.35,
    borderline: float = labels.BORDERLINE,
    quality: int = JPEG_QUALITY,
    site: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes one session zip; what was at `path` is replaced, in one step, only when the new file is complete.

    Args:
        path: of the zip; its folder must exist.
        session_id: name of the session, by contract the zip's name without `.zip`.
        source: the pretended person or place, which an honest evaluation leaves out as a whole.
        seed: of the room, the camera and the places; below FIRST_JUDGING_SEED.
        images: how many, 2 or more; half of them (rounded down) `blocked`.
        safety_distance_m: what `blocked` means; labels.py says exactly.
        borderline: places whose clearance is within this share of the safety distance are left out.
        quality: of the JPEGs, 1..95.
        site: seed of the looks and the camera that rooms of one site have in common; None: this room's own.
        progress: called after each image with how many there are.

    Raises:
        OperatorError: an argument is not allowed, the room has not enough different places, or the file cannot be
            written.
    """
    low, high = SAFETY_DISTANCES_M
    if seed >= FIRST_JUDGING_SEED:
        raise OperatorError(
            f"rooms from seed {FIRST_JUDGING_SEED} on are kept for judging networks, and make no images to train on: "
            f"take a lower seed than {seed}"
        )
    if images < 2:
        raise OperatorError(f"a session needs an image of each class: ask for 2 images or more, not {images}")
    if not low <= safety_distance_m <= high:
        raise OperatorError(f"the safety distance must be {low} to {high} m, not {safety_distance_m}")
    about = convert(
        {
            "id": session_id,
            "source": source,
            "robot": "simulated-jetbot",
            "place": f"simulated room {seed}" + (f" of site {site}" if site is not None else ""),
            "camera": "simulated IMX219, 160 degrees",
            "safety_distance_cm": round(100 * safety_distance_m, 3),
            "licence": "Apache-2.0",
            "simulated": True,
            "seed": seed,
        },
        Session,
        f"session {session_id}",
    )
    files = {SESSION_FILE: msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n"}
    counts = dict.fromkeys(LABELS, 0)
    for label, pixels in frames(Arena(seed, site=site), images, safety_distance_m, borderline):
        counts[label] += 1
        files[f"{label}/{counts[label]:04d}.jpg"] = _jpeg(pixels, quality)
        if progress is not None:
            progress(sum(counts.values()))
    _write_zip(path, files)


def frames(
    arena: Arena, images: int, safety_distance_m: float, borderline: float = labels.BORDERLINE
) -> Iterator[tuple[str, np.ndarray]]:
    """Frames with their labels, as chance finds them, until each class has its half; the arena's robot is moved about.

    Raises:
        OperatorError: the room has not enough different places.
    """
    rng = np.random.default_rng([arena.seed, 5])
    wanted = {"blocked": images // 2, "free": images - images // 2}
    seen: list[Pose] = []
    for _ in range(_TRIES_PER_IMAGE * images):
        pose = _random_pose(rng, arena)
        label = labels.certain_label(arena.room, pose, safety_distance_m, borderline)
        if label is None or not wanted[label] or _like_one_of(pose, seen):
            continue
        if arena.room.gap_m(pose.x_m, pose.y_m) < ROBOT_RADIUS_M + 0.005:
            continue
        seen.append(pose)
        wanted[label] -= 1
        arena.robot.put(pose, *_wheels(rng))
        yield label, arena.render()
        if not any(wanted.values()):
            return
    raise OperatorError(
        f"room {arena.seed} has not enough different places for {images} images; ask for fewer, or take another seed"
    )


def _random_pose(rng: np.random.Generator, arena: Arena) -> Pose:
    """Some along a printed road; of the others half anywhere, half before a thing that somebody holds the robot up to.

    Walls would prevail otherwise, and a road that leads straight ahead would hardly be seen.
    """
    room, roads = arena.room, surfaces_of(arena.room).roads
    if roads and rng.random() < _ALONG_A_ROAD:
        return _along(rng, roads[int(rng.integers(len(roads)))])
    if rng.random() < _ANYWHERE or not room.things:
        x, y = rng.uniform(0, room.width_m), rng.uniform(0, room.depth_m)
        return Pose(float(x), float(y), float(rng.uniform(-math.pi, math.pi)))
    thing = room.things[int(rng.integers(len(room.things)))]
    direction, away = float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.1, 1.0))
    x, y = thing.x_m + away * math.cos(direction), thing.y_m + away * math.sin(direction)
    return Pose(x, y, math.remainder(direction + math.pi + float(rng.normal(0.0, 0.35)), 2 * math.pi))


def _along(rng: np.random.Generator, road: Road) -> Pose:
    """On a road, about in the middle and about in its direction, either way."""
    at = int(rng.integers(len(road) - 1))
    ahead_x, ahead_y = road[at + 1] - road[at]
    heading = math.atan2(ahead_y, ahead_x) + (math.pi if rng.random() < 0.5 else 0.0)
    aside = float(rng.normal(0.0, 0.04))
    x, y = road[at, 0] - aside * math.sin(heading), road[at, 1] + aside * math.cos(heading)
    return Pose(float(x), float(y), math.remainder(heading + float(rng.normal(0.0, 0.2)), 2 * math.pi))


def _wheels(rng: np.random.Generator) -> tuple[float, float]:
    """Speeds in m/s at which the robot goes while the frame is taken: half the people move it by hand, half drive."""
    if rng.random() < 0.5:
        return 0.0, 0.0
    ahead, turn = rng.uniform(0.0, 0.2), rng.normal(0.0, 0.06)
    return float(ahead - turn), float(ahead + turn)


def _like_one_of(pose: Pose, seen: list[Pose]) -> bool:
    return any(
        math.hypot(pose.x_m - other.x_m, pose.y_m - other.y_m) < _ALIKE_M
        and abs(math.remainder(pose.heading_rad - other.heading_rad, 2 * math.pi)) < _ALIKE_RAD
        for other in seen
    )


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Stored, not deflated; names in order and one fixed time, so that equal files give equal bytes."""
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(files):
                    entry = zipfile.ZipInfo(name, _ZIP_TIME)
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, files[name])
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o644)  # mkstemp made it private
        os.replace(temporary, path)
    except OSError as problem:
        raise OperatorError(
            f"cannot write {path}: {problem.strerror or problem}; choose a folder you may write to"
        ) from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
