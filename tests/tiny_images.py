"""Tiny image sets for tests: every seed is a view of its own, the same seed always the same bytes."""

import functools
import io
import zipfile
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from PIL import Image

from pipelines.sessions import write_session
from serving.contracts.sessions import Session


@functools.lru_cache(maxsize=512)
def picture(seed: int, size: Tuple[int, int] = (224, 224), mode: str = "RGB", form: str = "JPEG") -> bytes:
    """An image file of coarse random patches: far from every other seed in perceptual hash, sharp, of medium grey."""
    generator = np.random.default_rng(seed)
    patches = generator.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)
    written = io.BytesIO()
    image.save(written, form)
    return written.getvalue()


def near(seed: int, quality: int = 40) -> bytes:
    """Nearly the same view as `picture(seed)`, in other bytes."""
    return jpeg(Image.open(io.BytesIO(picture(seed))), quality)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()


def zip_of(path: Path, files: Dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def notebook(path: Path, blocked: int = 3, free: int = 3, seed: int = 0) -> Path:
    """A notebook's dataset.zip with so many images of each class."""
    files = {f"dataset/blocked/b{i}.jpg": picture(seed + i) for i in range(blocked)}
    files.update({f"dataset/free/f{i}.jpg": picture(seed + 1000 + i) for i in range(free)})
    return zip_of(path, files)


def session(folder: Path, name: str, blocked: int = 3, free: int = 3, seed: int = 0, source: str = "") -> Path:
    """A session zip in `folder`, as `jetloop ingest` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [(f"blocked/b{i}.jpg", picture(seed + i)) for i in range(blocked)]
    images += [(f"free/f{i}.jpg", picture(seed + 1000 + i)) for i in range(free)]
    write_session(folder / f"{name}.zip", Session(id=name, source=source or name), images)
    return folder / f"{name}.zip"
