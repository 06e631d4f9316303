"""What systemd is told, by sd_notify(3): ready, stopping, what the robot does, and that it is alive.

Started in another way, nothing is told and nothing is missed.
"""

import logging
import os
import socket
import time
from typing import Mapping

log = logging.getLogger("systemd")


def notify(message: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tells the service manager; False where there is none, or it does not listen.

    Args:
        message: `READY=1`, `STOPPING=1`, `WATCHDOG=1` or `STATUS=...`.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # an abstract name
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.connect(address)
            channel.send(message.encode())
    except OSError as problem:
        log.warning("systemd was not told %s: %s", message, problem)
        return False
    return True


class Watchdog:
    """Tells systemd that this process is alive, three times as often as the unit's WatchdogSec asks.

    Whoever calls pet() says by that that everything that matters runs; nobody calls it from a thread of its own.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        microseconds = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._pause_s = int(microseconds) / 3e6 if microseconds.isdecimal() and meant else 0.0
        self._told_s = float("-inf")

    def pet(self) -> None:
        """To be called often; tells systemd when it is time."""
        now_s = time.monotonic()
        if self._pause_s and now_s - self._told_s >= self._pause_s:
            self._told_s = now_s
            notify("WATCHDOG=1", self._environment)
