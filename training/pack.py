"""The pack: all images of the sessions, decoded once into one file, `build/cache/pack-<digest>.npy` (pack_file.py).

A cache and nothing else: safe to delete, in no commit and in no DVC output. The digest in its name is that of the
sessions' contents, so that changed sessions get another pack. It is written beside its place and renamed, and every
image has a checksum, compared before it is used: a damaged pack is never believed, it is made anew.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import Optional, Sequence

from serving.errors import OperatorError
from training.frames import Listing, decode, list_images, open_session
from training.pack_file import FRAME_BYTES, Damaged, PackFile, Pixels, write

CACHE = Path("build/cache")
FEWEST = 400  # images worth a pack: fewer are decoded in less than a second
IN_MEMORY = 4_000  # images (600 MB) that are held in memory; of more, only those at work
KEPT = 2  # packs, with the newest

LOG = logging.getLogger(__name__)


def read(images: Sequence[str], sessions: Path, what: str, cache: Path = CACHE) -> Optional[Pixels]:
    """Pixels of the images, each compared with its checksum, out of a pack that is made if it is not there.

    Args:
        images: their names, in any order.
        sessions: folder of the session zips.
        what: shown beside the progress bar.
        cache: folder of the packs.

    Returns:
        An array of up to IN_MEMORY images, else PackedPixels. None: there is no pack, and so few are not worth one.

    Raises:
        OperatorError: a session cannot be read, or the disk does not take the pack.
        RejectedError: an image is missing, broken, or not 224x224.
    """
    listing = list_images(sessions)
    _need_each(images, sessions, listing)
    path = cache / f"pack-{listing.digest[:16]}.npy"
    for _ in range(2):
        if not path.exists():
            if len(images) < FEWEST:
                return None
            _make(path, sessions, listing)
        try:
            with PackFile(path, listing.digest) as opened:
                return opened.pixels(opened.numbers(images), len(images) <= IN_MEMORY, what)
        except Damaged as problem:
            LOG.warning("%s is damaged (%s) and made anew", path, problem)
            with contextlib.suppress(OSError):
                path.unlink()
        except FileNotFoundError:  # another process found it damaged and removed it just now
            continue
        except OSError as problem:
            raise OperatorError(f"{path} cannot be read ({problem.strerror}); delete it, then `dvc repro`") from None
    raise OperatorError(f"{path} is damaged again as soon as it is written; check the disk that holds {cache}")


def _need_each(images: Sequence[str], sessions: Path, listing: Listing) -> None:
    known = set(listing.images)
    for image in images:
        if image not in known:
            with open_session(sessions / f"{image.partition('/')[0]}.zip") as archive:
                decode(archive, image)  # raises what is wrong with it


def _make(path: Path, sessions: Path, listing: Listing) -> None:
    """Writes the pack, whole or not at all; of two processes one writes, and the other waits and finds it."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "pack.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, whatever ends it
            for leftover in path.parent.glob("pack-*.partial"):  # of a process that was killed
                leftover.unlink()
            if path.exists():
                return
            try:
                _need_space(path.parent, len(listing.images) * FRAME_BYTES)
                write(partial, sessions, listing)
                os.replace(str(partial), str(path))
                _prune(path.parent, KEPT)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    partial.unlink()
    except OSError as problem:
        needed = len(listing.images) * FRAME_BYTES / 1e9
        raise OperatorError(
            f"{path} cannot be written ({problem.strerror}): {len(listing.images)} images need {needed:.2f} GB there; "
            "make room or let `build/cache` be a link to a disk that has it"
        ) from None


def _need_space(cache: Path, needed: int) -> None:
    for kept in (KEPT - 1, 0):  # an older pack gives way only if it must
        _prune(cache, kept)
        free = shutil.disk_usage(str(cache)).free
        if free > needed * 1.01:
            return
    raise OperatorError(
        f"decoding the images once takes {needed / 1e9:.2f} GB in {cache.resolve()}, and {free / 1e9:.2f} GB are free; "
        "make room or let `build/cache` be a link to a disk that has it"
    )


def _prune(cache: Path, kept: int) -> None:
    packs = sorted(cache.glob("pack-*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in packs[kept:]:
        path.unlink()
