"""Files that outlive a power cut, and the lock that keeps two services off one folder. Knows nothing of releases."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.errors import OperatorError
from serving.files import sync_folder


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file so that readers and reboots see the old content or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder not writable; the old content is still there.
    """
    _make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(PermissionError):  # a stick with FAT knows no modes
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Removes what `write` left behind when it was killed."""
    for temporary in folder.rglob(".writing-*"):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the kernel frees it when the process ends, however it ends.

    Raises:
        OperatorError: another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise OperatorError(
                f"{path.parent} is already served by process {holder}: stop that one first, or give this one a --folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)  # or a power cut may take the new folder with all that is in it
