"""`jetloop receive`: takes the session zips that robots upload, into a folder, for `jetloop ingest`.

A file appears in the folder once, whole, and checked against the digest that came with it; nothing is overwritten. What
is half there waits in <folder>/.parts, and goes on where it broke off: HEAD tells how far it came (`Upload-Offset`),
PATCH brings the rest. What is in a zip is not looked at here; ingest does.
"""

import base64
import contextlib
import fcntl
import hmac
import http.server
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from serving import files
from serving.command_line import log_to_stderr
from serving.config import is_loopback
from serving.contracts.names import NAME_PATTERN
from serving.errors import OperatorError
from serving.upload_http import repr_digest

log = logging.getLogger("receive")

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 256 * 1024
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


class Receiver(http.server.ThreadingHTTPServer):
    """The server.

    Args:
        address: host and port to listen on.
        folder: where complete files go.
        token: that robots send as `Authorization: Bearer`; empty: none is asked for.
        max_bytes: of one file.

    Raises:
        OSError: the address or the folder.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], folder: Path, token: str, max_bytes: int) -> None:
        self.folder, self.token, self.max_bytes = folder, token, max_bytes
        self.parts = folder / ".parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:  # without the base class's look-up of a name, which may take seconds
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server_version, sys_version = "jetloop", ""
    server: Receiver

    def do_HEAD(self) -> None:
        with self._answering():
            path, part = self._paths()
            if path.is_file():
                digest = repr_digest(files.sha256_of(path))
                self._send(200, {"Content-Length": str(path.stat().st_size), "Repr-Digest": digest})
                return
            offset = part.stat().st_size if part.is_file() else 0
            self._send(404, {"Content-Length": "0", "Upload-Offset": str(offset)})

    def do_PUT(self) -> None:
        with self._answering():
            path, part = self._paths()
            length = self._length()
            with self._open(part) as file:
                self._check_new(path)
                file.truncate(0)
                self._take(path, part, file, length, length)

    def do_PATCH(self) -> None:
        with self._answering():
            path, part = self._paths()
            length, offset = self._length(), self._number("Upload-Offset")
            with self._open(part) as file:
                self._check_new(path)
                if offset != file.seek(0, os.SEEK_END):
                    raise _Refused(409, "that is not where it broke off; ask with HEAD")
                self._take(path, part, file, length, offset + length)

    def _take(self, path: Path, part: Path, file: IO[bytes], length: int, total: int) -> None:
        """Appends the body; when that makes the file whole, checks it and puts it into its place."""
        if total > self.server.max_bytes:
            raise _Refused(413, f"a file has at most {self.server.max_bytes} bytes")
        digest = _DIGEST.search(self.headers.get("Repr-Digest", ""))
        if digest is None:
            raise _Refused(400, "a file comes with its `Repr-Digest: sha-256=:...:`")
        left = length
        while left:
            block = self.rfile.read1(min(left, _BLOCK_BYTES))
            if not block:
                raise ConnectionError("it broke off")
            file.write(block)
            file.flush()  # what came counts, also when this process is killed
            left -= len(block)
        os.fsync(file.fileno())
        if files.sha256_of(part) != base64.b64decode(digest.group(1)).hex():
            part.unlink()
            raise _Refused(422, "its digest is another; it was thrown away, send it again")
        try:
            os.link(part, path)  # fails where a file is: nothing is overwritten
        except FileExistsError:
            raise _Refused(412, "a file of that name is there") from None
        part.unlink()
        files.sync_folder(path.parent)
        log.info("%s, %d bytes, from %s", path.name, total, self.client_address[0])
        self._send(201, {"Content-Length": "0"})

    def _paths(self) -> tuple[Path, Path]:
        """Where the file goes, and where it grows."""
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if self.server.token and not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise _Refused(401, "a token is needed")
        name = self.path.rpartition("/")[2]
        if not re.match(NAME_PATTERN, name) or not name.endswith(".zip"):
            raise _Refused(400, "the last part of the path is the name of a zip")
        return self.server.folder / name, self.server.parts / name

    def _check_new(self, path: Path) -> None:
        if path.exists():
            raise _Refused(412, "a file of that name is there")

    def _length(self) -> int:
        return self._number("Content-Length")

    def _number(self, header: str) -> int:
        told = self.headers.get(header, "")
        if not (told.isascii() and told.isdecimal()) or len(told) > 15:
            raise _Refused(411, f"`{header}` is needed")
        return int(told)

    @contextlib.contextmanager
    def _open(self, part: Path) -> Iterator[IO[bytes]]:
        """A growing file, for one request at a time."""
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _Refused(409, "it is being sent just now") from None
            yield file

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _Refused as refusal:
            self.close_connection = True
            self._send(refusal.status, {"Content-Length": "0", "X-Reason": str(refusal)})
        except (ConnectionError, TimeoutError) as problem:  # what came so far is kept
            self.close_connection = True
            log.info("%s: %s", self.path, problem)
        except OSError as problem:
            self.close_connection = True
            log.error("%s: %s", self.path, problem)
            self._send(507, {"Content-Length": "0"})

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s: " + format, self.client_address[0], *args)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default="incoming", show_default=True)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Anything but loopback asks for a token.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8430, show_default=True)
@click.option("--max-mb", type=click.FloatRange(1), default=2000.0, show_default=True, help="Of one session.")
def command(folder: Path, bind: str, port: int, max_mb: float) -> None:
    """Take the sessions that robots upload over HTTP, into a folder.

    Writes FOLDER/<id>.zip; half a file waits in FOLDER/.parts. Robots send the token that is in the environment
    variable JETLOOP_RECEIVE_TOKEN here and at upload.token in their robot.toml. Over an open network put a proxy with
    TLS before it. Then: jetloop ingest FOLDER/<id>.zip

    Example: jetloop receive --folder incoming --bind 0.0.0.0
    """
    token = os.environ.get("JETLOOP_RECEIVE_TOKEN", "")
    if not token and not is_loopback(bind):
        raise OperatorError(f"--bind {bind} lets others in: set JETLOOP_RECEIVE_TOKEN to what only robots know")
    log_to_stderr()
    try:
        server = Receiver((bind, port), folder, token, int(max_mb * 1e6))
    except OSError as problem:
        raise OperatorError(f"{bind}:{port}, {folder}: {problem.strerror}; choose another") from None
    with server:
        click.echo(f"sessions go to {folder}; robots set [upload] url = http://{bind}:{server.server_address[1]}")
        sys.stdout.flush()
        server.serve_forever()
