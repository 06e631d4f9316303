"""Who may sign in to the console, and as what: a JSON file of names, roles and password hashes (scrypt).

`jetloop console user` writes it; the console reads it again whenever it changes, so that a user who is removed is out
at once. Sessions and requests are telemetry/console/access.py.
"""

import base64
import hashlib
import hmac
import os
import threading
from pathlib import Path
from typing import Literal

import msgspec

from serving.errors import OperatorError, RejectedError

Role = Literal["viewer", "operator"]
MIN_PASSWORD = 10  # characters
MAX_PASSWORD = 200
# OWASP's password storage cheat sheet: N=2^15, r=8, p=3; 32 MiB and about 0.2 s each.
_N, _R, _P = 2**15, 8, 3
_SCRYPT = "scrypt"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}\Z"


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    role: Role
    password: str = ""  # hash; empty: signs in through a proxy alone


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: list[User] = []


def hash_password(password: str) -> str:
    """`scrypt$N$r$p$salt$hash`, with a new salt.

    Raises:
        RejectedError: the password is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise RejectedError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this one has {len(password)}")
    salt = os.urandom(16)
    parts = (base64.b64encode(part).decode() for part in (salt, _scrypt(password, salt, _N, _R, _P)))
    return "$".join((_SCRYPT, str(_N), str(_R), str(_P), *parts))


def matches(password: str, hashed: str) -> bool:
    """Whether the password is the one that was hashed; a hash of no known form matches nothing."""
    try:
        kind, n, r, p, salt, expected = hashed.split("$")
        if kind != _SCRYPT or len(password) > MAX_PASSWORD:
            return False
        found = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
        return hmac.compare_digest(found, base64.b64decode(expected))
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


# What an unknown name is compared with, so that it takes as long as a wrong password.
_NOBODY = f"{_SCRYPT}${_N}${_R}${_P}${base64.b64encode(bytes(16)).decode()}${base64.b64encode(bytes(32)).decode()}"


class Users:
    """The users of one file, as it is now."""

    def __init__(self, path: Path) -> None:
        """Raises OperatorError: the file is missing or damaged."""
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] = (0, 0)
        self._users: dict[str, User] = {}
        self._one_at_a_time = threading.Semaphore(2)  # 32 MiB each
        self._look()

    def get(self, name: str) -> User | None:
        """Raises OperatorError: the file is gone or damaged; nobody gets in until it is mended."""
        with self._lock:
            self._look()
            return self._users.get(name)

    def check(self, name: str, password: str) -> User | None:
        """The user whose name and password these are. Slow on purpose: call it in a thread."""
        user = self.get(name)
        with self._one_at_a_time:
            good = matches(password, user.password if user and user.password else _NOBODY)
        return user if good and user and user.password else None

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except OSError as problem:
            raise OperatorError(f"{self._path}: {problem.strerror}; `jetloop console user add` makes it") from None
        if stamp != self._stamp:
            self._users = {user.name: user for user in read(self._path)}
            self._stamp = stamp


def read(path: Path) -> list[User]:
    """The users of a file; none when it is not there.

    Raises:
        OperatorError: it cannot be read, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).users
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise OperatorError(f"{path} cannot be read: {problem.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise OperatorError(f"{path} is no file of `jetloop console user` ({problem})") from None


def put(path: Path, user: User) -> bool:
    """Adds a user, or changes the one of that name; whether it is a new one.

    Raises:
        RejectedError: the name is not one.
        OperatorError: the file cannot be read or written.
    """
    import re

    if not re.match(_NAME, user.name):
        raise RejectedError(f"`{user.name[:50]}` is no user name: letters, digits and . _ @ + -, 100 at most")
    before = read(path)
    others = [one for one in before if one.name != user.name]
    _write(path, [*others, user])
    return len(others) == len(before)


def remove(path: Path, name: str) -> None:
    """Takes a user out.

    Raises:
        RejectedError: there is none of that name.
        OperatorError: the file cannot be read or written.
    """
    before = read(path)
    others = [one for one in before if one.name != name]
    if len(others) == len(before):
        raise RejectedError(f"{path} has no user `{name[:50]}`; `jetloop console user list` names them")
    _write(path, others)


def _write(path: Path, users: list[User]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_File(sorted(users, key=lambda one: one.name))), indent=1)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as problem:
        raise OperatorError(f"{path} cannot be written: {problem.strerror}") from None
