"""One daemon a state_dir: a lock on the folder itself.

Locking a folder writes nothing: it works on a disk that is full or read-only, and falls with the process.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from serving.errors import OperatorError


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Holds a state_dir for this process alone.

    Raises:
        OperatorError: another daemon holds it, or it is not there and cannot be made.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _open(state_dir)
    except OSError as problem:
        raise OperatorError(f"robot.state_dir {state_dir} cannot be written: {problem.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OperatorError(f"another jetloop-robot runs with {state_dir}; stop it, or give this one its own") from None
    finally:
        os.close(descriptor)


def is_held(state_dir: Path) -> bool:
    """Whether a daemon runs with this state_dir.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = _open(state_dir)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
