"""HTTP for TUF: no retries of its own, time limits on everything, and large files go on where they broke off.

What TUF asks for is verified there, not here. A file larger than 1 MB is kept while it comes, in a folder on the
robot's own disk; when the connection breaks or the power fails, the next attempt asks the server for the rest.
"""

import contextlib
import hashlib
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO, Any, Dict, Iterator, Optional

import urllib3
from tuf.api import exceptions as tuf_errors
from tuf.ngclient import FetcherInterface  # type: ignore[attr-defined]  # exported without __all__

MIN_BYTES_PER_S = 10_000  # a server that drips slower than this is left
RESUMABLE_BYTES = 1_000_000  # smaller files begin anew
_MAX_PARTS = 2  # engine and golden frames of the newest release that was tried
_CHUNK_BYTES = 256 * 1024


class Fetcher(FetcherInterface):
    """Fetches what one repository serves.

    Args:
        url: of the repository: decides about a proxy.
        timeout_s: of connecting, and of each wait for data.
        folder: for temporary files and for the parts of large ones; /tmp may be memory.
    """

    def __init__(self, url: str, timeout_s: float, folder: Path) -> None:
        self._timeout_s = timeout_s
        self._folder = folder
        self._parts = folder / "parts"
        address = urllib3.util.parse_url(url)
        proxy = urllib.request.getproxies().get(address.scheme or "")
        options: Any = {
            "timeout": urllib3.Timeout(connect=timeout_s, read=timeout_s),
            "retries": urllib3.Retry(
                connect=0, read=0, status=0, other=0, redirect=3, respect_retry_after_header=False
            ),
        }
        if proxy and not urllib.request.proxy_bypass(address.host or ""):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, **options)
        else:
            self._pool = urllib3.PoolManager(**options)

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class does, with a limit on the whole time too; large files are resumed.

        Raises:
            DownloadError: no or no good answer; what came of a large file is kept for the next attempt.
            OSError: the disk.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if max_length < RESUMABLE_BYTES:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._receive(url, max_length, file)
                file.seek(0)
                yield file
            return
        part = self._part(url)
        with part.open("a+b") as file:
            try:
                self._receive(url, max_length, file)
            except tuf_errors.DownloadLengthMismatchError:
                part.unlink()
                raise
            file.seek(0)
            try:
                yield file
            finally:  # it was taken, or it is not what was signed
                part.unlink()

    def _part(self, url: str) -> Path:
        """Where a large file grows; older ones make room."""
        self._parts.mkdir(exist_ok=True)
        part = self._parts / hashlib.sha256(url.encode()).hexdigest()
        others = sorted((p for p in self._parts.iterdir() if p != part), key=lambda p: p.stat().st_mtime)
        for old in others[: len(others) - (_MAX_PARTS - 1)] if len(others) >= _MAX_PARTS else []:
            old.unlink()
        return part

    def _receive(self, url: str, max_length: int, file: IO[bytes]) -> None:
        """Appends what the file still lacks.

        Raises:
            DownloadError: longer than allowed, too slow, or no good answer.
        """
        received = file.seek(0, 2)
        if received == max_length:
            return  # the power failed between the last byte and its check
        if received > max_length:
            received = file.truncate(0)
        deadline = time.monotonic() + self._timeout_s + (max_length - received) / MIN_BYTES_PER_S
        response = self._get(url, received)
        if received and response.status != 206:  # a server without ranges sends all of it
            received = file.truncate(0)
        for chunk in self._chunks(response):
            received += len(chunk)
            if received > max_length:
                raise tuf_errors.DownloadLengthMismatchError(f"{url} is longer than the {max_length} bytes allowed")
            if time.monotonic() > deadline:
                raise tuf_errors.SlowRetrievalError(f"{url} comes slower than {MIN_BYTES_PER_S} bytes/s")
            file.write(chunk)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._chunks(self._get(url, 0))

    def _get(self, url: str, start: int) -> urllib3.BaseHTTPResponse:
        headers: Dict[str, str] = {"Range": f"bytes={start}-"} if start else {}
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as problem:
            raise tuf_errors.DownloadError(f"Failed to download {url}") from problem
        if response.status == 200 or (start and _starts_at(response) == start):
            return response
        response.close()  # not given back: what it still holds would begin the next answer
        if start and response.status in (206, 416):  # nothing of what is here fits
            return self._get(url, 0)
        raise tuf_errors.DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)

    @staticmethod
    def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            # read1 gives what is there, so that the caller's clock sees a server that drips.
            while data := response.read1(_CHUNK_BYTES, decode_content=False):
                yield data
        except urllib3.exceptions.HTTPError as problem:
            raise tuf_errors.DownloadError("the connection broke") from problem
        finally:
            response.close()


def _starts_at(response: urllib3.BaseHTTPResponse) -> Optional[int]:
    """The first byte of a partial answer: `Content-Range: bytes 100-199/200`; None when it is none."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if response.status == 206 and unit == "bytes" and first.isdecimal() else None
