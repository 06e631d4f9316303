"""Many simulated sessions, quickly: rendered ones, and variants of them that pass for other rooms.

Rendering takes about 10 ms an image. So at most RENDERED images are rendered, in rooms of their own, by
`simulator.sessions.make_session`; every further session is one of these with each frame mirrored, zoomed, moved and
lit in another way, and encoded again. That keeps what the stages work on as it is in a real collection: JPEGs of that
size, one zip per session, perceptual hashes that are mostly far apart, and one frame in twenty that is a
near-duplicate of one in another session. It is no data to learn from.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from pipelines.sessions import write_session
from serving.contracts.sessions import SESSION_FILE, Session
from simulator.sessions import make_session
from training.machine import cores

RENDERED = 2_000
_ROOM = 250  # images of a rendered session: a room has not more places that look different
_BARELY_CHANGED = 0.05
_SOURCES = 5


def make(folder: Path, images: int, progress: Callable[[int], None] = lambda _: None) -> int:
    """Writes sessions with so many images in all (rounded up to whole sessions) and returns the number of images."""
    from concurrent.futures import ProcessPoolExecutor

    folder.mkdir(parents=True)
    rooms = max(4, min(RENDERED, images) // _ROOM)
    size = min(_ROOM, images // rooms)
    sessions = -(-images // size)
    with ProcessPoolExecutor(cores()) as pool:
        for made in pool.map(_render, [folder] * rooms, range(rooms), [size] * rooms):
            progress(made)
        further = range(rooms, sessions)
        for made in pool.map(_vary, [folder] * len(further), further, [rooms] * len(further)):
            progress(made)
    return sessions * size


def _render(folder: Path, number: int, size: int) -> int:
    name = f"room-{number:04d}"
    source = f"person-{number % _SOURCES}"
    make_session(folder / f"{name}.zip", session_id=name, source=source, seed=number + 1, images=size)
    return size


def _vary(folder: Path, number: int, rooms: int) -> int:
    original = folder / f"room-{number % rooms:04d}.zip"
    name = f"room-{number:04d}"
    about = Session(id=name, source=f"person-{number % _SOURCES}", simulated=True)
    images = list(_variants(original, np.random.default_rng(number)))
    write_session(folder / f"{name}.zip", about, images)
    return len(images)


def _variants(original: Path, generator: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(original) as archive:
        for name in archive.namelist():
            if name == SESSION_FILE:
                continue
            with Image.open(io.BytesIO(archive.read(name))) as image:
                yield name, _variant(image.convert("RGB"), generator)


def _variant(image: Image.Image, generator: np.random.Generator) -> bytes:
    if generator.random() > _BARELY_CHANGED:
        side = image.width * generator.uniform(0.45, 0.85)
        left, top = generator.uniform(0, image.width - side, 2)
        image = image.resize(image.size, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        if generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gain = generator.uniform(0.7, 1.3)
        image = image.point([min(255, int(level * gain)) for level in range(256)] * 3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(generator.integers(75, 92)))
    return file.getvalue()


def describe(folder: Path) -> dict[str, float]:
    """What the zips weigh, for the report."""
    files = list(folder.glob("*.zip"))
    return msgspec.to_builtins({"sessions": len(files), "gigabytes": sum(f.stat().st_size for f in files) / 1e9})  # type: ignore[no-any-return]
