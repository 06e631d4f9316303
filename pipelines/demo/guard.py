"""Ends process groups whose parent died without ending them, be it by kill -9.

The demo starts `python -m pipelines.demo.guard` and writes one line for each group: `+123` when it is started, `-123`
when it has ended. When the pipe closes, what is left in the list is ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

PATIENCE_S = 5.0


class Guard:
    """The demo's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.demo.guard"], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def add(self, group: int) -> None:
        self._write(f"+{group}")

    def remove(self, group: int) -> None:
        self._write(f"-{group}")

    def close(self) -> None:
        """Lets the guard end what is left, and waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def end_child(process: "subprocess.Popen[Any]", patience_s: float = PATIENCE_S) -> int:
    """Ends a child that leads a process group, and its group with it; returns its exit code."""
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience_s)
    end_groups([process.pid], patience_s=1.0)
    return process.wait()


def end_groups(groups: Iterable[int], patience_s: float = PATIENCE_S) -> None:
    """SIGTERM to each group, and SIGKILL to those that are still there after `patience_s`."""
    left = [group for group in groups if _signal(group, signal.SIGTERM)]
    deadline = time.monotonic() + patience_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if _signal(group, 0)]
    for group in left:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Sends a signal (0 only asks); False when the group has no process any more."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: list[int] = []
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.append(group)
        else:
            groups.remove(group)
    end_groups(reversed(groups))


if __name__ == "__main__":
    main()
