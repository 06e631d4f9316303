"""The files of what a person hands in, a zip or a folder, listed and read with limits. Nothing is ever extracted.

What a file is good for is decided in pipelines/ingest_check.py.
"""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines.sessions import MAX_IMAGE_BYTES, ZIP_ERRORS
from serving.errors import OperatorError, RejectedError

MAX_FILES = 200_000
MAX_TOTAL_BYTES = 16 * 1024**3  # decompressed, over all files: what a bomb may cost


class LeaveOut(Exception):
    """This file is not taken, and why.

    Args:
        reason: a few fixed words, by which the report groups.
        detail: what is particular to this file.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class SourceFile(NamedTuple):
    """A file as it was handed in; `path` is safe to print, with `/` between its parts."""

    path: str
    handle: Any
    problem: str = ""  # why it must not be opened


class Source(Protocol):
    """A zip or a folder."""

    files: list[SourceFile]  # by path

    def read(self, file: SourceFile) -> bytes:
        """The file's bytes.

        Raises:
            LeaveOut: they cannot be had, or are too many.
            RejectedError: the source as a whole is a bomb.
        """

    def close(self) -> None: ...


def open_source(path: Path) -> Source:
    """Opens what a person hands in.

    Raises:
        OperatorError: there is nothing to read at `path`.
        RejectedError: it is neither a folder nor a readable zip, or holds too many files.
    """
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        missing = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise OperatorError(f"{path} {missing}; hand in a session zip, a notebook's dataset.zip or a folder")
    return ZipSource(path)


class ZipSource:
    def __init__(self, path: Path) -> None:
        self._left_bytes = MAX_TOTAL_BYTES
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except ZIP_ERRORS as problem:
            raise RejectedError(f"{path} is not a readable zip ({problem}); zip the folder again") from None
        except (OSError, ValueError) as problem:
            raise OperatorError(f"{path} cannot be read: {problem}") from None
        # Not is_dir(): it fails on a damaged entry that has no name.
        infos = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        if len(infos) > MAX_FILES:
            self._zip.close()
            raise RejectedError(f"{path} holds {len(infos)} files, more than {MAX_FILES}; hand it in as several zips")
        self.files = sorted((_zip_file(info) for info in infos), key=lambda file: file.path)

    def read(self, file: SourceFile) -> bytes:
        try:
            with self._zip.open(file.handle) as opened:
                data = opened.read(MAX_IMAGE_BYTES + 1)
        except ZIP_ERRORS as problem:
            raise LeaveOut("damaged in the zip", str(problem)) from None
        except (OSError, ValueError) as problem:
            raise LeaveOut("damaged in the zip", printable(str(problem))) from None
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise RejectedError(f"{self._path} unpacks to more than {MAX_TOTAL_BYTES >> 30} GB; hand it in as several")
        return _bounded(data)

    def close(self) -> None:
        self._zip.close()


def _zip_file(info: zipfile.ZipInfo) -> SourceFile:
    path = info.filename.replace("\\", "/")  # some Windows tools write backslashes
    problem = ""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or ":" in parts[0]:
        problem = "unsafe path"
    elif stat.S_ISLNK(info.external_attr >> 16):
        problem = "a link"
    elif info.flag_bits & 0x1:
        problem = "encrypted"
    return SourceFile(printable(path), info, problem)


class FolderSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = []
        for file in self._walk():
            self.files.append(file)
            if len(self.files) > MAX_FILES:
                raise RejectedError(f"{path} holds more than {MAX_FILES} files; hand in the folder with the images")
        self.files.sort(key=lambda file: file.path)

    def _walk(self) -> Iterator[SourceFile]:
        unreadable: list[OSError] = []
        for folder, folders, names in os.walk(self._path, onerror=unreadable.append):
            folders.sort()
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in sorted(names + links):
                yield self._file(Path(folder, name))
        for problem in unreadable:
            shown = os.path.relpath(problem.filename, self._path)
            yield SourceFile(printable(shown) + "/", None, f"cannot be read ({problem.strerror})")

    def _file(self, path: Path) -> SourceFile:
        mode = path.lstat().st_mode
        problem = ""
        if stat.S_ISLNK(mode):
            problem = "a link"
        elif not stat.S_ISREG(mode):
            problem = "not a file"  # a pipe would block whoever opens it
        return SourceFile(printable(path.relative_to(self._path).as_posix()), path, problem)

    def read(self, file: SourceFile) -> bytes:
        try:
            with open(file.handle, "rb") as opened:
                return _bounded(opened.read(MAX_IMAGE_BYTES + 1))
        except OSError as problem:
            raise LeaveOut("cannot be read", problem.strerror or "") from None

    def close(self) -> None:
        pass


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_IMAGE_BYTES:
        raise LeaveOut("too large", f"more than {MAX_IMAGE_BYTES >> 20} MB")
    return data


def printable(text: str) -> str:
    """The text with line breaks, escape codes and broken characters written as \\x.., so that it stays one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
