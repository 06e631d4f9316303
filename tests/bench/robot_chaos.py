"""kill -9 of a real `jetloop-robot run` at random moments: motors, boot, and what of its events reaches the broker.

The motors' memory belongs to this process, so what the guard wrote, and when, is seen however the daemon ends.
"""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import click

from simulator.motors import CellMotors
from tests.conftest import Address, end, free_port, listens, start, wait_for
from tests.robot_lab import Lab
from tests.test_link_parts import Listener
from tests.test_robot_parts import make_candidate

LIMIT_S = 0.2
_BOOT_S = 60.0
_ENTRY = "[jetloop.hardware]\nmemory = tests.bench.robot_rig:MemoryBody\n"


def chaos(
    folder: Path, broker: Address, kills: int, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> "dict[str, Any]":
    """Kills the daemon `kills` times: every second one while it boots, the others while it drives.

    Returns:
        Milliseconds until the motors were at zero, those over 200 ms, boots that did not end in driving, and events
        that the broker never got although a later one of the same robot came.
    """
    dice = random.Random(seed)
    motors = CellMotors()
    lab = Lab(folder)
    entry_points = next((folder / "plugin").glob("*/entry_points.txt"))
    entry_points.write_text(_ENTRY)
    listener = Listener(broker.port)
    zero_ms: list[float] = []
    unbootable = 0
    try:
        wait_for(lambda: listener.subscriptions, what="the listener")
        lab.publish(make_candidate(folder / "first", "1"), 1)
        lab.configure(lab.serve(), broker.port, kind="memory", options=f'motors = "{motors.path}"')
        for number in range(kills):
            lab.start()
            if number % 2:
                time.sleep(dice.uniform(0.0, 2.0))
            else:
                unbootable += not _drives(lab, motors)
                time.sleep(dice.uniform(0.0, 0.5))
            zero_ms.append(_kill(lab, motors) * 1e3)
            tick()
        lab.start()
        unbootable += not _drives(lab, motors)
        lab.stop()
        lost, events = _lost(listener)
    finally:
        lab.close()
        listener.close()
    return {
        "kills": kills,
        "zero_ms_max": max(zero_ms),
        "over_200_ms": sum(ms > LIMIT_S * 1e3 for ms in zero_ms),
        "unbootable": unbootable,
        "events": events,
        "lost_events": lost,
    }


def _drives(lab: Lab, motors: CellMotors) -> bool:
    deadline_s = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline_s:
        if lab.is_doing("driving") and any(motors.command()[1:]):
            return True
        time.sleep(0.02)
    return False


def _kill(lab: Lab, motors: CellMotors) -> float:
    """kill -9; seconds until the motors were at zero for good (0: they were already)."""
    assert lab.process is not None
    was_turning = any(motors.command()[1:])
    killed_s = time.monotonic()
    lab.process.kill()
    lab.process.wait()
    still_s = None
    while time.monotonic() < killed_s + 3 * LIMIT_S:  # long enough for a command that would come after the zero
        at_s, left, right = motors.command()
        if left or right:
            was_turning, still_s = True, None
        elif still_s is None:
            still_s = at_s
        time.sleep(0.001)
    if not was_turning:
        return 0.0
    return max(0.0, still_s - killed_s) if still_s is not None else float("inf")


def _lost(listener: Listener) -> "tuple[int, int]":
    """Gaps in the numbers of the robot's events, once all that waited has come; and how many events there are."""

    def sequences() -> "set[int]":
        return {event.sequence for event in listener.events()}

    wait_for(lambda: listener.states() and not listener.states()[-1].online, what="the goodbye")
    got = sequences()
    return len(set(range(1, max(got) + 1)) - got), len(got)


def own_mosquitto(folder: Path) -> "tuple[subprocess.Popen[bytes], Address]":
    """A Mosquitto of this measurement's own on loopback.

    Raises:
        click.ClickException: it is not installed.
    """
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if program is None:
        raise click.ClickException("mosquitto is not installed; `make services` adds it")
    port = free_port()
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = start([program, "-c", str(settings)], folder / "mosquitto.log")
    wait_for(lambda: listens(port), what="Mosquitto listening")
    return process, Address("127.0.0.1", port)


def run(folder: Path, kills: int, tick: Callable[[], None]) -> "dict[str, Any]":
    """chaos() with a broker of its own."""
    (folder / "lab").mkdir(parents=True)
    process, broker = own_mosquitto(folder)
    try:
        return chaos(folder / "lab", broker, kills, tick=tick)
    finally:
        end(process)
