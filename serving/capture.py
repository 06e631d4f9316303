"""Images that a person labels on the robot, as the Jetbot's data-collection notebook does: one session after the other.

    <folder>/open/session.json             the session under way
    <folder>/open/blocked/*.jpg, free/*.jpg
    <folder>/closing-<id>/                 on its way to the zip; gone on with at the next start
    <folder>/<id>.zip                      finished: what `jetloop ingest` takes; upload.py brings it away

Each image is on the disk before its label is answered, so that a power failure loses none that was. Nothing here
deletes what was not uploaded: when the disk is full, a label is refused.
"""

import contextlib
import datetime
import logging
import os
import secrets
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import msgspec
import numpy as np

from serving import files
from serving.config import CaptureSettings
from serving.contracts.sessions import LABELS, SESSION_FILE, Session
from serving.errors import OperatorError
from serving.local.glimpse import encode
from serving.status import CaptureStatus

log = logging.getLogger("capture")

_JPEG_QUALITY = 95
_OPEN, _CLOSING, _DISCARDED = "open", "closing-", "discarded-"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same images give the same bytes
_MAX_SESSION_BYTES = 64 * 1024


class Capture:
    """The sessions of one robot; any thread may call any method.

    Args:
        folder: made at the first label.
        settings: the table `[capture]` of robot.toml.
        robot: its name; begins the ids of its sessions.
    """

    def __init__(self, folder: Path, settings: CaptureSettings, robot: str) -> None:
        self.folder = folder
        self._open = folder / _OPEN
        self._settings, self._robot = settings, robot
        self._lock = threading.Lock()
        self._session: Optional[Session] = None
        self._counts: Dict[str, int] = dict.fromkeys(LABELS, 0)
        self._open_bytes = 0
        self._waiting: Dict[str, int] = {}  # finished sessions: name of the zip -> bytes
        try:
            self._look()
        except OSError as problem:
            log.error("%s: %s", folder, problem)
        self._status = self._count()

    def begin(self, place: str = "", safety_distance_cm: float = 0.0) -> str:
        """Begins a session, and gives its id.

        Raises:
            OperatorError: another one is under way, or the disk failed.
        """
        with self._changing(self._open):
            if self._session is not None:
                raise OperatorError(f"session {self._session.id} is under way: finish or discard it first")
            return self._begin(place, safety_distance_cm).id

    def label(self, pixels: np.ndarray, label: str) -> str:
        """Adds an image to the session under way, or to a new one; what there is then, in words.

        Args:
            pixels: (224, 224, 3) uint8, RGB.
            label: one of LABELS.

        Raises:
            OperatorError: there is no room, or the disk failed; nothing was added.
        """
        if label not in LABELS:
            raise ValueError(f"{label} is no label")
        jpeg = encode(pixels, _JPEG_QUALITY)
        with self._changing(self._open):
            self._check_room(len(jpeg))
            session = self._session or self._begin("", 0.0)
            # A clock that jumps must not give a name twice.
            name = f"{time.time_ns() // 1_000_000}-{secrets.token_hex(3)}.jpg"
            (self._open / label).mkdir(exist_ok=True)
            files.write_atomic(self._open / label / name, jpeg)
            self._counts[label] += 1
            self._open_bytes += len(jpeg)
            return f"{label}; {self._counts['blocked']} blocked and {self._counts['free']} free in {session.id}"

    def finish(self) -> Path:
        """Closes the session under way into its zip, and gives that.

        Raises:
            OperatorError: there is none, it lacks a class, or the disk failed; the session is then still open.
        """
        with self._changing(self._open):
            if self._session is None:
                raise OperatorError("no session is under way: label an image first")
            lacking = [label for label in LABELS if not self._counts[label]]
            if lacking:
                raise OperatorError(f"session {self._session.id} has no `{lacking[0]}` image; label one, or discard it")
            closing = self.folder / f"{_CLOSING}{self._session.id}"
            os.replace(self._open, closing)
            try:
                path = self._close(closing)
            except OSError:
                os.replace(closing, self._open)
                raise
            self._forget_open()
            return path

    def discard(self) -> str:
        """Deletes the session under way, and gives its id.

        Raises:
            OperatorError: there is none, or the disk failed.
        """
        with self._changing(self._open):
            if self._session is None:
                raise OperatorError("no session is under way")
            session_id = self._session.id
            discarded = self.folder / f"{_DISCARDED}{session_id}"
            os.replace(self._open, discarded)
            self._forget_open()
            shutil.rmtree(discarded)
            return session_id

    def waiting(self) -> List[Path]:
        """Finished sessions that are not yet confirmed where they go, the oldest first."""
        with self._lock:
            return [self.folder / name for name in sorted(self._waiting)]

    def confirmed(self, path: Path) -> None:
        """A finished session is where it goes, every byte of it: it need not be kept here.

        Raises:
            OperatorError: the disk failed; it will be found there already, and confirmed again.
        """
        with self._changing(path):
            path.unlink(missing_ok=True)
            files.sync_folder(self.folder)
            self._waiting.pop(path.name, None)

    def status(self) -> CaptureStatus:
        """As of the last change; never waits, also while a zip is written."""
        return self._status

    @contextlib.contextmanager
    def _changing(self, path: Path) -> Iterator[None]:
        """Holds the lock; a disk that refuses is the operator's.

        Raises:
            OperatorError: the disk failed.
        """
        with self._lock:
            try:
                yield
            except OSError as problem:
                raise OperatorError(f"{path}: {problem.strerror}; check the disk") from None
            finally:
                self._status = self._count()

    # The caller holds the lock.

    def _count(self) -> CaptureStatus:
        return CaptureStatus(
            session=self._session.id if self._session else "",
            blocked=self._counts["blocked"],
            free=self._counts["free"],
            used_mb=self._used() / 1e6,
            max_mb=self._settings.max_mb,
            waiting=sorted(self._waiting),
        )

    def _look(self) -> None:
        """Finds what the last start left: finished sessions, an open one, and what a power failure left half done."""
        if not self.folder.is_dir():
            return
        self._waiting = {path.name: path.stat().st_size for path in self.folder.glob("*.zip")}
        for path in self.folder.glob(".*.new"):
            path.unlink()
        for discarded in self.folder.glob(f"{_DISCARDED}*"):
            shutil.rmtree(discarded)
        for closing in self.folder.glob(f"{_CLOSING}*"):
            self._close(closing)
        if not self._open.is_dir():
            return
        session = self._read_session()
        images = {label: list((self._open / label).glob("*.jpg")) for label in LABELS}
        if session is None and any(images.values()):
            log.error("%s: %s is lost or damaged; its images go into a new session", self._open, SESSION_FILE)
            session = self._begin("", 0.0)
        self._session = session
        self._counts = {label: len(found) for label, found in images.items()}
        self._open_bytes = sum(path.stat().st_size for found in images.values() for path in found)

    def _read_session(self) -> Optional[Session]:
        try:
            data = files.read_bounded(self._open / SESSION_FILE, _MAX_SESSION_BYTES)
            return msgspec.json.decode(data, type=Session)
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return None

    def _begin(self, place: str, safety_distance_cm: float) -> Session:
        now = datetime.datetime.now(datetime.timezone.utc)
        # Seconds may come twice when a clock was not set; so the four digits.
        session_id = f"{self._robot[:70]}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        settings = self._settings
        session = Session(
            id=session_id,
            source=settings.source or session_id,
            robot=self._robot,
            place=place or settings.place,
            camera=settings.camera,
            captured_at=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            safety_distance_cm=safety_distance_cm or settings.safety_distance_cm or None,
            licence=settings.licence,
        )
        for label in LABELS:
            (self._open / label).mkdir(parents=True, exist_ok=True)
        files.write_atomic(self._open / SESSION_FILE, msgspec.json.encode(session))
        files.sync_folder(self.folder)
        files.sync_folder(self.folder.parent)
        self._session = session
        return session

    def _close(self, closing: Path) -> Path:
        """Makes the zip of a session; the same images give the same bytes, however often it is gone on with.

        Raises:
            OSError: the disk.
        """
        path = self.folder / f"{closing.name[len(_CLOSING) :]}.zip"
        if path.name not in self._waiting:
            _write_zip(path, closing)
            self._waiting[path.name] = path.stat().st_size
        shutil.rmtree(closing, ignore_errors=True)  # what is left goes at the next start
        return path

    def _forget_open(self) -> None:
        self._session, self._counts, self._open_bytes = None, dict.fromkeys(LABELS, 0), 0

    def _used(self) -> int:
        return self._open_bytes + sum(self._waiting.values())

    def _check_room(self, more_bytes: int) -> None:
        """There must be room for the image, and later for the zip beside the images.

        Raises:
            OperatorError: there is not.
        """
        used_mb = (self._used() + more_bytes) / 1e6
        if used_mb > self._settings.max_mb:
            waiting = f", {len(self._waiting)} sessions wait for their upload" if self._waiting else ""
            raise OperatorError(f"capture.max_mb ({self._settings.max_mb:g}) is reached: finish the session{waiting}")
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        needed = self._open_bytes + 2 * more_bytes
        if free - needed < self._settings.min_free_mb * 1e6:
            raise OperatorError(f"only {free / 1e6:.0f} MB of disk are free; capture.min_free_mb keeps the rest")


def _write_zip(path: Path, source: Path) -> None:
    """Stores a session's folder as a zip, in one step.

    Raises:
        OSError: the disk.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in (SESSION_FILE, *_images(source)):
                    archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), (source / name).read_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        files.sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _images(source: Path) -> List[str]:
    return [f"{label}/{path.name}" for label in LABELS for path in sorted((source / label).glob("*.jpg"))]
