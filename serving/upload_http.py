"""One file to a web server: `PUT <url>/<name>` with `If-None-Match: *`, so that nothing is overwritten.

Any server that takes PUT will do; then an upload that breaks off begins anew. One that answers `HEAD` of a file which
is half there with 404 and `Upload-Offset: <bytes>` (`jetloop receive` does) gets the rest alone, by PATCH.
"""

import base64
import hashlib
import os
import re
from typing import IO, Any, Dict, Optional

import urllib3

from serving.config import UploadSettings
from serving.errors import OperatorError, RejectedError

_BLOCK_BYTES = 256 * 1024
_NO_HEAD = (405, 501)


def repr_digest(sha256: str) -> str:
    """A digest as in the header `Repr-Digest` (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def upload(file: IO[bytes], name: str, digest: str, settings: UploadSettings) -> None:
    """Brings a file there.

    Args:
        file: opened for reading bytes.
        name: its name there.
        digest: its SHA-256, in hexadecimal digits.

    Raises:
        OperatorError: the server does not answer, or not as it should; try again later.
        RejectedError: another file of that name is there.
    """
    _Server(settings).bring(file, f"{settings.url.rstrip('/')}/{name}", digest)


class _Server:
    def __init__(self, settings: UploadSettings) -> None:
        timeout = urllib3.Timeout(connect=settings.timeout_s, read=settings.timeout_s)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False)
        self._headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}

    def bring(self, file: IO[bytes], url: str, digest: str) -> None:
        size = os.fstat(file.fileno()).st_size
        found = self._ask("HEAD", url)
        if found.status == 200:
            self._compare(url, digest, found)
            return
        if found.status not in (404, *_NO_HEAD):
            raise _unexpected("HEAD", url, found)
        offset = _offset(found, size)
        headers = {"Content-Length": str(size - offset), "Repr-Digest": repr_digest(digest)}
        headers["Content-Type"] = "application/zip"
        file.seek(offset)
        if offset:
            headers.update({"Upload-Offset": str(offset), "Upload-Length": str(size)})
            answer = self._ask("PATCH", url, file, headers)
        else:
            answer = self._ask("PUT", url, file, {**headers, "If-None-Match": "*"})
        if answer.status == 412:
            self._compare(url, digest, self._ask("HEAD", url))
        elif answer.status not in (200, 201, 204):
            raise _unexpected("PUT", url, answer)

    def _compare(self, url: str, digest: str, found: urllib3.BaseHTTPResponse) -> None:
        """What is there is this file, or another one.

        Raises:
            RejectedError: another one.
        """
        told = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", found.headers.get("Repr-Digest", ""))
        there = base64.b64decode(told.group(1)).hex() if told else self._digest_of(url)
        if there != digest:
            raise RejectedError(f"another file is at {url} already")

    def _digest_of(self, url: str) -> str:
        answer = self._ask("GET", url, preload_content=False)
        if answer.status != 200:
            raise _unexpected("GET", url, answer)
        found = hashlib.sha256()
        try:
            for block in answer.stream(_BLOCK_BYTES):
                found.update(block)
        except urllib3.exceptions.HTTPError as problem:
            raise OperatorError(f"{url}: {problem}") from None
        return found.hexdigest()

    def _ask(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Optional[Dict[str, str]] = None,
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, url, body=body, headers={**self._headers, **(headers or {})}, **options)
        except urllib3.exceptions.HTTPError as problem:
            raise OperatorError(f"{url}: {problem}") from None


def _offset(found: urllib3.BaseHTTPResponse, size: int) -> int:
    """How many bytes the server has of a file that is not complete there."""
    told = found.headers.get("Upload-Offset", "")
    return int(told) if told.isdecimal() and int(told) < size else 0


def _unexpected(method: str, url: str, answer: urllib3.BaseHTTPResponse) -> OperatorError:
    if answer.status in (401, 403):
        return OperatorError(f"{url}: HTTP status {answer.status}; check upload.token")
    return OperatorError(f"{method} {url}: HTTP status {answer.status}")
