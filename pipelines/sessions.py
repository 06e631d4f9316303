"""Session zips, read in place and written whole: the form is serving/contracts/sessions.py.

How images get into a session is pipelines/ingest.py; how they become pixels is pipelines/images_facts.py.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from serving.contracts.sessions import LABELS, SESSION_FILE, Session
from serving.errors import OperatorError, RejectedError
from serving.files import sync_folder
from serving.settings import convert

MAX_IMAGE_BYTES = 20 * 1024 * 1024  # a 224x224 JPEG has about 15 kB
MAX_SESSION_FILE_BYTES = 64 * 1024
PARTIAL = ".partial"  # ending of a session that is being written; readers pass it over

# What zipfile and zlib raise for bytes that are no zip, or no longer.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content makes the same bytes


class ImageEntry(NamedTuple):
    """An image of a session; `image` is its id everywhere: `<session>/<label folder>/<file>`."""

    image: str
    label: str  # the folder; before corrections
    entry: str  # name inside the zip
    bytes: int
    crc: int


class SessionZip:
    """An open session. Use as a context manager; `read` may be called from several threads.

    Raises:
        RejectedError: the file is no zip, or not a session by contract; the message names it.
        OperatorError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except ZIP_ERRORS as problem:
            raise RejectedError(
                f"{path} is not a readable zip ({problem}); "
                "fetch it again (`dvc checkout`) or withdraw it (docs/data.md)"
            ) from None
        except OSError as problem:
            raise OperatorError(f"{path} cannot be opened: {problem.strerror}") from None
        with contextlib.ExitStack() as stack:
            stack.callback(self._zip.close)
            self.session = self._read_session()
            self.images = tuple(sorted(self._list_images()))
            stack.pop_all()

    def __enter__(self) -> "SessionZip":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, image: ImageEntry) -> bytes:
        """The image's bytes as they are in the zip.

        Raises:
            RejectedError: they are damaged.
        """
        try:
            return self._zip.read(image.entry)
        except ZIP_ERRORS as problem:
            raise RejectedError(f"{self.path}: {image.entry} is damaged ({problem}); fetch it again") from None

    def _read_session(self) -> Session:
        try:
            info = self._zip.getinfo(SESSION_FILE)
        except KeyError:
            raise RejectedError(
                f"{self.path} has no {SESSION_FILE}, so it is no session; "
                "move it away and hand it in with `jetloop ingest`"
            ) from None
        if info.file_size > MAX_SESSION_FILE_BYTES:
            raise RejectedError(f"{self.path}: {SESSION_FILE} is larger than {MAX_SESSION_FILE_BYTES} bytes")
        try:
            session = parse_session(self._zip.read(info), f"{self.path}: {SESSION_FILE}")
        except ZIP_ERRORS as problem:
            raise RejectedError(f"{self.path}: {SESSION_FILE} is damaged ({problem}); fetch it again") from None
        if session.id != self.path.stem:
            raise RejectedError(f"{self.path} calls itself `{session.id}`; its file name must be {session.id}.zip")
        return session

    def _list_images(self) -> Iterator[ImageEntry]:
        seen: set[str] = set()
        for info in self._zip.infolist():
            if info.filename.endswith("/") or info.filename == SESSION_FILE:  # is_dir() fails on an empty name
                continue
            folder, _, name = info.filename.partition("/")
            if folder not in LABELS or "/" in name or not name.endswith(".jpg"):
                raise RejectedError(
                    f"{self.path} holds {info.filename!r}; a session holds only {SESSION_FILE}, "
                    f"{' and '.join(f'{label}/*.jpg' for label in LABELS)}: hand the images in with `jetloop ingest`"
                )
            if info.filename in seen:
                raise RejectedError(f"{self.path} holds {info.filename!r} twice; hand the images in anew")
            if info.file_size > MAX_IMAGE_BYTES:
                raise RejectedError(f"{self.path}: {info.filename!r} has more than {MAX_IMAGE_BYTES} bytes")
            seen.add(info.filename)
            yield ImageEntry(f"{self.path.stem}/{info.filename}", folder, info.filename, info.file_size, info.CRC)


def parse_session(text: bytes, source: str) -> Session:
    """Reads `session.json`.

    Raises:
        RejectedError: it is no JSON, or not by contract.
    """
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise RejectedError(f"{source} is not JSON: {problem}") from None
    return convert(raw, Session, source, RejectedError)


def session_files(folder: Path) -> list[Path]:
    """The session zips of a folder, by name; empty if there is none."""
    return sorted(path for path in folder.glob("*.zip") if not path.name.startswith("."))


def each_session(folder: Path) -> Iterator[SessionZip]:
    """Opens the sessions of a folder, one after the other, each open until the next is asked for.

    Raises:
        OperatorError: the folder is missing or holds no session.
        RejectedError: a file in it is not a session.
    """
    files = session_files(folder)
    if not files:
        missing = "does not exist" if not folder.is_dir() else "holds no session"
        fetch = f" (or fetch it: `dvc pull {folder}.dvc`)" if Path(f"{folder}.dvc").exists() else ""
        raise OperatorError(f"{folder} {missing}; add images with `jetloop ingest PATH`{fetch}")
    for path in files:
        with SessionZip(path) as session:
            yield session


def write_session(path: Path, session: Session, images: Iterable[tuple[str, bytes]]) -> None:
    """Writes a session zip: whole or not at all, and the same bytes for the same content.

    Args:
        path: `<id>.zip`; an existing file is replaced.
        session: what goes into session.json.
        images: (`<label>/<file>.jpg`, bytes of the JPEG) in the order in which they are stored.

    Raises:
        OperatorError: the disk does not take it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                text = msgspec.json.format(msgspec.json.encode(session), indent=2) + b"\n"
                _store(archive, SESSION_FILE, text)
                for name, data in images:
                    _store(archive, name, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as problem:
        raise OperatorError(f"{path} cannot be written: {problem.strerror or problem}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, whatever this machine is
    info.external_attr = 0o100644 << 16
    archive.writestr(info, data)
