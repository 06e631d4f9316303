"""A folder in the place of a web server, for TUF: a stick that a person brings, or what was copied from one.

What TUF asks for is verified there, not here. A stick may hold anything, so nothing but regular files is opened, and no
link is followed.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO, Iterator, Optional
from urllib.parse import unquote

from tuf.api import exceptions as tuf_errors
from tuf.ngclient import FetcherInterface  # type: ignore[attr-defined]  # exported without __all__

_CHUNK_BYTES = 256 * 1024


class FolderFetcher(FetcherInterface):
    """Fetches what lies in a folder that has `metadata/` and `targets/`.

    Args:
        source: the folder.
        temporary: for files on their way; /tmp may be memory.
        keep: gets a copy of each file that was handed out and not refused; None keeps none.
    """

    def __init__(self, source: Path, temporary: Path, keep: Optional[Path] = None) -> None:
        self._source = source
        self._temporary = temporary
        self._keep = keep

    @property
    def url(self) -> str:
        """What the addresses that are asked for begin with."""
        return self._source.absolute().as_uri()

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class does.

        Raises:
            DownloadError: the file is not there, cannot be read, is no regular file, or longer than allowed.
            OSError: the disk that it is copied to.
        """
        self._temporary.mkdir(parents=True, exist_ok=True)
        name = self._name(url)
        with tempfile.TemporaryFile(dir=self._temporary) as file:
            received = 0
            for chunk in self._read(name):
                received += len(chunk)
                if received > max_length:
                    raise tuf_errors.DownloadLengthMismatchError(f"{name} is longer than {max_length} bytes")
                file.write(chunk)
            file.seek(0)
            yield file
            if self._keep is not None:
                file.seek(0)
                _copy(file, self._keep / name)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._read(self._name(url))

    def _name(self, url: str) -> str:
        name = unquote(url[len(self.url) :]).lstrip("/") if url.startswith(self.url) else ""
        if not name or ".." in Path(name).parts:
            raise tuf_errors.DownloadError(f"{url} is not below {self._source}")
        return name

    def _read(self, name: str) -> Iterator[bytes]:
        path = self._source / name
        try:
            # Without O_NONBLOCK a pipe that somebody put there would be waited for, for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise tuf_errors.DownloadError(f"{path} is no regular file")
                while data := file.read(_CHUNK_BYTES):
                    yield data
        except (FileNotFoundError, NotADirectoryError):
            raise tuf_errors.DownloadHTTPError(f"{path} is not there", 404) from None
        except OSError as problem:
            raise tuf_errors.DownloadError(f"{path} cannot be read: {problem.strerror}") from problem


def _copy(file: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())
