"""The local socket: where it is, who may use it, and how a request gets its answer.

It is a file in state_dir, for the daemon's user and group. On a disk that takes no file it is an abstract name, where
there are no permissions: then only the daemon's user and root are served, which the kernel tells.
"""

import contextlib
import hashlib
import logging
import os
import pwd
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Callable, Iterator, Tuple

import msgspec

from serving.errors import JetloopError, OperatorError, RejectedError
from serving.local.requests import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Answer, Request, encode, parse

log = logging.getLogger("operator")

SOCKET_FILE = "control.sock"
_TIMEOUT_S = 2.0  # of a whole request, for whoever asks
_ANSWER_TIMEOUT_S = 60.0  # closing a large session on an SD card takes its time
_MAX_AT_ONCE = 8
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Endpoint:
    """Serves requests in threads of its own, a few at a time.

    Args:
        state_dir: held by this process (lock.py).
        do: answers a request; from any thread. Its second argument says who asks.

    Raises:
        OperatorError: there is no way to listen.
    """

    def __init__(self, state_dir: Path, do: Callable[[Request, str], Answer]) -> None:
        self._do = do
        self._channel, self._abstract = _listen(state_dir)
        self._slots = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests; the socket's file stays, and answers nobody."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                asker, _ = self._channel.accept()
            except OSError as problem:
                if not self._closing.is_set():
                    log.error("the local socket: %s", problem)
                    self._closing.wait(1.0)
                continue
            if not self._slots.acquire(blocking=False):
                asker.close()
                continue
            threading.Thread(target=self._serve, args=(asker,), name="local-request", daemon=True).start()

    def _serve(self, asker: socket.socket) -> None:
        try:
            with asker:
                asker.settimeout(_TIMEOUT_S)
                uid = _who(asker)
                if self._abstract and uid not in (0, os.getuid()):
                    asker.sendall(encode(Answer(ok=False, said="only the robot's own user and root may ask")))
                    return
                try:
                    answer = self._do(parse(_line(asker, MAX_REQUEST_BYTES, _TIMEOUT_S)), _name(uid))
                except JetloopError as problem:
                    answer = Answer(ok=False, said=str(problem))
                asker.sendall(encode(answer))
        except OSError:  # it is gone, or takes no answer
            pass
        except Exception:  # a fault of ours must not end the socket
            log.exception("a request failed")
        finally:
            self._slots.release()


def ask(state_dir: Path, request: Request) -> Answer:
    """Asks the daemon of a state_dir.

    Raises:
        ConnectionError: no daemon listens there.
        OperatorError: the daemon does not answer, or this user may not ask.
    """
    with _connect(state_dir) as channel:
        try:
            channel.sendall(encode(request))
            line = _line(channel, MAX_ANSWER_BYTES, _ANSWER_TIMEOUT_S)
            return msgspec.json.decode(line, type=Answer)
        except (OSError, ValueError, RejectedError) as problem:  # msgspec's errors are ValueErrors
            raise OperatorError(f"jetloop-robot does not answer: {problem}; journalctl -u jetloop-robot") from None


def _listen(state_dir: Path) -> Tuple[socket.socket, bool]:
    """A listening socket, and whether it has but an abstract name."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    abstract = False
    try:
        with _short(state_dir) as folder:
            path = f"{folder}/{SOCKET_FILE}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            channel.bind(path)
            os.chmod(path, 0o660)  # before listen(): nobody was let in
    except OSError as problem:
        log.warning("%s: %s; listening under a name without a file", state_dir / SOCKET_FILE, problem.strerror)
        abstract = True
        channel.close()
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            channel.bind(_abstract_name(state_dir))
        except OSError as second:
            channel.close()
            raise OperatorError(f"no local socket for {state_dir}: {second.strerror}") from None
    channel.listen(_MAX_AT_ONCE)
    return channel, abstract


def _connect(state_dir: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    channel.settimeout(_TIMEOUT_S)
    try:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), _short(state_dir) as folder:
            channel.connect(f"{folder}/{SOCKET_FILE}")
            return channel
        channel.connect(_abstract_name(state_dir))
        uid = _who(channel)
        if uid not in (0, os.getuid(), state_dir.stat().st_uid):  # anyone may take such a name
            raise OperatorError(f"what listens for {state_dir} runs as user {uid}, who does not own it")
        return channel
    except PermissionError:
        channel.close()
        raise OperatorError(f"{state_dir / SOCKET_FILE} is not for this user; use sudo, or the robot's group") from None
    except OSError:
        channel.close()
        raise ConnectionRefusedError(f"no jetloop-robot runs with {state_dir}") from None
    except OperatorError:
        channel.close()
        raise


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the folder that fits into the 108 bytes of a socket's address."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _abstract_name(state_dir: Path) -> str:
    return f"\0jetloop-robot-{hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:32]}"


def _who(channel: socket.socket) -> int:
    """The other side's user, as the kernel knows it."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _line(channel: socket.socket, max_bytes: int, timeout_s: float) -> bytes:
    """Reads up to the end of a line, within one time limit for all of it.

    Raises:
        RejectedError: it is too long, too slow, or breaks off.
        OSError: the connection broke.
    """
    deadline_s = time.monotonic() + timeout_s
    got = bytearray()
    while b"\n" not in got:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise RejectedError(f"no whole line within {timeout_s:g} s")
        channel.settimeout(left_s)
        try:
            more = channel.recv(min(4096, max_bytes + 1 - len(got)))
        except TimeoutError:
            continue
        if not more:
            raise RejectedError("the line breaks off")
        got += more
        if len(got) > max_bytes:
            raise RejectedError(f"a line has at most {max_bytes} bytes")
    return bytes(got[: got.index(b"\n")])
