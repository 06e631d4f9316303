"""Small state files that survive power failure at any instruction, and tell when they were damaged.

A file is written beside its place, synced, and renamed over the old one; then the folder is synced, because the rename
itself lives there. A sealed file carries the SHA-256 of its content: what a failing SD card gives back is noticed.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Optional, Type, TypeVar

import msgspec

T = TypeVar("T")

MAX_STATE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20

log = logging.getLogger(__name__)


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    body: msgspec.Raw


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable.

    Raises:
        OSError: the folder is gone or the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes the content of a file durable.

    Raises:
        OSError: the file is gone or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: whoever reads it, at any time, finds the old or the new content.

    Raises:
        OSError: disk full, not writable; the old content is still there.
    """
    beside = path.with_name(f".{path.name}.new")  # one writer a file, so one name; a leftover is overwritten
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(beside, path)
    sync_folder(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Content of a file that must not be larger than `max_bytes`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return data


def sha256_of(path: Path) -> str:
    """Digest of a file's content, 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_sealed(path: Path, state: msgspec.Struct) -> None:
    """Writes a struct as JSON with its own digest, atomically.

    Raises:
        OSError: disk full, not writable; the old content is still there.
    """
    body = msgspec.json.encode(state)
    write_atomic(path, msgspec.json.encode(_Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))))


def read_sealed(path: Path, into: Type[T]) -> Optional[T]:
    """Reads what `write_sealed` wrote; None where there is none, and (with a line in the log) where it is damaged."""
    try:
        sealed = msgspec.json.decode(read_bounded(path, MAX_STATE_BYTES), type=_Sealed)
        if hashlib.sha256(sealed.body).hexdigest() != sealed.sha256:
            raise ValueError("its digest does not match its content")
        return msgspec.json.decode(sealed.body, type=into)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        log.error("%s is damaged and ignored: %s", path, problem)
        return None
