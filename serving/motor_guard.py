"""The motor guard: a small process that alone talks to the motors, and zeroes them when the daemon goes quiet.

    python motor_guard.py '{"factory": "package.module:callable", "options": {...}, "path": [...]}'

Commands come through a Unix socket that keeps messages whole (SOCK_SEQPACKET), as standard input. Motors go to zero
when the deadline of the last command passes (the daemon hangs, is stopped, has nothing to say), when the socket ends
(it was killed; no other process holds its end), when this process is told to end, and when a command cannot be carried
out.

The daemon's side is guarded_motors.py. The standard library alone, and little of it: 10 MB, and quick to start again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # without importing typing
if TYPE_CHECKING:
    from serving.hardware.base import Motors

# number, left, right, deadline: a time.monotonic(), the same clock in every process. Deadline 0: motors to zero.
COMMAND = struct.Struct("<Qddd")
REPLY = struct.Struct("<QB")  # number of the newest command done, status; then UTF-8 text
OK, FAILED = 0, 1
MAX_TEXT_BYTES = 500
RETRY_S = 0.05  # between two attempts to reach motors that do not answer
_GIVE_UP_AFTER_S = 60.0  # without a daemon and without an answer from the motors

# How a service manager ends a group; SIGABRT is its watchdog's.
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT)

_CHANNEL = 0


class Guard:
    """One pair of motors, and until when they may turn.

    Args:
        motors: has `drive(left, right)` and `stop()`.
    """

    def __init__(self, motors: Motors) -> None:
        self._motors = motors
        self._turning_until_s: float | None = None  # time.monotonic(); None: at zero
        self._complained = False

    def serve(self) -> None:
        """Carries commands out until the daemon is gone."""
        while True:
            left_s = None if self._turning_until_s is None else max(0.0, self._turning_until_s - time.monotonic())
            readable, _, _ = select.select([_CHANNEL], [], [], left_s)
            if not readable:
                self._zero(0)
                continue
            message = _newest()
            if not message:
                return
            self._obey(*COMMAND.unpack(message))

    def end(self) -> None:
        """Motors to zero, for good."""
        give_up_s = time.monotonic() + _GIVE_UP_AFTER_S
        while not self._zero(0) and time.monotonic() < give_up_s:
            time.sleep(RETRY_S)

    def _obey(self, number: int, left: float, right: float, deadline_s: float) -> None:
        if time.monotonic() >= deadline_s:  # told to stop, or this process was held up
            if self._zero(number):
                _reply(number, OK)
            return
        self._turning_until_s = deadline_s  # before drive(): it may raise half-way
        try:
            self._motors.drive(left, right)
        except Exception as problem:
            self._zero(0)
            _reply(number, FAILED, problem)
        else:
            _reply(number, OK)

    def _zero(self, number: int) -> bool:
        """Tells the motors to stop, once; what fails is tried again by serve() and told the first time."""
        try:
            self._motors.stop()
        except Exception as problem:
            self._turning_until_s = time.monotonic() + RETRY_S
            if number or not self._complained:
                _reply(number, FAILED, problem)
            self._complained = True
            return False
        self._turning_until_s, self._complained = None, False
        return True


def _newest() -> bytes:
    """The newest command that waits; empty when the daemon is gone."""
    message = os.read(_CHANNEL, COMMAND.size)
    with contextlib.suppress(BlockingIOError):
        while message:
            message = os.read(_CHANNEL, COMMAND.size)
    return message


def _reply(number: int, status: int, problem: object = "") -> None:
    """Tells the daemon; one that reads nothing, or is gone, is not waited for."""
    text = " ".join(str(problem).split()).encode()[:MAX_TEXT_BYTES]
    with contextlib.suppress(OSError):
        os.write(_CHANNEL, REPLY.pack(number, status) + text)


def main(argument: str) -> int:
    """Opens the motors, stops them, says so, serves. Returns the exit code."""
    given = json.loads(argument)
    sys.path[:] = given["path"]  # where the daemon finds its modules, so does its guard
    os.set_blocking(_CHANNEL, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the daemon decides when to end
    guard = None
    try:
        module, _, name = given["factory"].partition(":")
        motors = getattr(importlib.import_module(module), name)(**given["options"])
        for number in _ENDING:
            signal.signal(number, lambda *_: sys.exit(0))
        guard = Guard(motors)
        motors.stop()  # whatever ran before
        _reply(0, OK)
        guard.serve()
    except Exception as problem:
        _reply(0, FAILED, f"{type(problem).__name__}: {problem}")
        return 1
    finally:
        if guard is not None:
            for number in _ENDING:  # told twice, it does not leave before the motors stand
                signal.signal(number, signal.SIG_IGN)
            guard.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
