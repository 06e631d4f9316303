"""The motor guard: motors at zero whatever becomes of the daemon, measured in the memory that the motors are."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import psutil
import pytest

from serving.errors import OperatorError
from serving.guarded_motors import GuardedMotors
from serving.hardware.base import MotorsElsewhere
from serving.motors import DeadMan
from simulator.hardware import SimulatedJetbot
from simulator.motors import CellMotors
from tests.bench.robot_chaos import chaos
from tests.conftest import ROOT, Address, wait_for

pytestmark = pytest.mark.alone  # measures time

MAX_AGE_S = 0.2

# Drives 30 times a second until it is killed, or until `silent` is asked for: then it lives on and says nothing.
DAEMON = """
import sys, time
from serving.guarded_motors import GuardedMotors
from serving.hardware.base import MotorsElsewhere
motors = GuardedMotors(MotorsElsewhere("simulator.motors:CellMotors", {"path": sys.argv[1]}), lambda: None, 0.2)
until_s = time.monotonic() + (0.5 if sys.argv[2] == "silent" else 60.0)
while time.monotonic() < until_s:
    motors.drive(0.4, 0.4)
    said_s = time.monotonic()
    time.sleep(1 / 30)
print(said_s, flush=True)
time.sleep(60)
"""


class FlakyMotors(CellMotors):
    """Motors whose board does not answer as long as a file is there. Opened by the guard."""

    def __init__(self, path: str, broken: str) -> None:
        super().__init__(path)
        self._broken = broken

    def drive(self, left: float, right: float) -> None:
        if os.path.exists(self._broken):
            raise OSError("[Errno 121] Remote I/O error")
        super().drive(left, right)


def turning(cell: CellMotors) -> bool:
    return any(cell.command()[1:])


def stopped_after_s(cell: CellMotors, since_s: float) -> float:
    """Waits for the motors to stand; seconds from `since_s` to the command that stopped them."""
    wait_for(lambda: not turning(cell), 5.0, "motors at zero")
    return cell.command()[0] - since_s


@pytest.fixture
def cell() -> Iterator[CellMotors]:
    made = CellMotors()
    yield made
    made.close()


@pytest.fixture
def told() -> List[Dict[str, Any]]:
    """What the daemon is told of guards that had to be started again."""
    return []


@pytest.fixture
def guarded(cell: CellMotors, told: List[Dict[str, Any]]) -> Iterator[GuardedMotors]:
    where = MotorsElsewhere("simulator.motors:CellMotors", {"path": cell.path})
    made = GuardedMotors(where, cell.stop, MAX_AGE_S, told.append)
    yield made
    made.close()
    assert not psutil.pid_exists(made.pid)


def drive_until_refused(guarded: GuardedMotors) -> str:
    """Drives 30 times a second; the error that ended it."""
    deadline_s = time.monotonic() + 5.0
    while time.monotonic() < deadline_s:
        try:
            guarded.drive(0.4, 0.4)
        except OperatorError as problem:
            return str(problem)
        time.sleep(1 / 30)
    pytest.fail("nothing was refused")


def drives_again(guarded: GuardedMotors, cell: CellMotors) -> bool:
    try:
        guarded.drive(0.3, 0.3)
    except OperatorError:
        return False
    return turning(cell)


@pytest.mark.parametrize("end", ["killed", "stopped", "silent"])
def test_whatever_becomes_of_the_daemon_the_motors_stop_in_time(cell: CellMotors, end: str) -> None:
    """kill -9, SIGSTOP, or a daemon that lives and says nothing: zero within 200 ms, and the guard ends with it."""
    command = [sys.executable, "-c", DAEMON, cell.path, end]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        try:
            wait_for(lambda: turning(cell), 10.0, "driving")
            (guard,) = psutil.Process(daemon.pid).children()
            if end == "silent":
                since_s = float(daemon.stdout.readline())
            else:
                since_s = time.monotonic()
                daemon.send_signal(signal.SIGKILL if end == "killed" else signal.SIGSTOP)
            assert stopped_after_s(cell, since_s) <= MAX_AGE_S
        finally:
            daemon.kill()
    wait_for(lambda: not guard.is_running(), 5.0, "the end of the guard")
    assert not turning(cell)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSTOP])
def test_a_lost_guard_stops_the_motors_in_time_and_another_takes_over(
    guarded: GuardedMotors, cell: CellMotors, told: List[Dict[str, Any]], number: signal.Signals
) -> None:
    """The daemon zeroes the motors itself when its guard dies or does not answer, drives with a new one, and tells the
    cause once."""
    guarded.drive(0.4, 0.4)
    wait_for(lambda: turning(cell), what="driving")
    first = guarded.pid
    lost_s = time.monotonic()
    os.kill(first, number)
    if number is signal.SIGSTOP:  # only who drives finds a guard that hangs
        assert "motor guard" in drive_until_refused(guarded)
    assert stopped_after_s(cell, lost_s) <= MAX_AGE_S
    wait_for(lambda: drives_again(guarded, cell), 5.0, "driving again")
    assert guarded.pid != first
    wait_for(lambda: told, what="the cause")
    (event,) = told
    assert event["cause"] == ("hung" if number is signal.SIGSTOP else "ended")
    assert 0 < event["away_s"] < 5
    guarded.stop()
    assert not turning(cell)


def test_stop_returns_when_the_motors_stand(guarded: GuardedMotors, cell: CellMotors) -> None:
    """Also with a guard that hangs, and also in the moment of its death."""
    for number in (0, signal.SIGKILL, signal.SIGSTOP):
        wait_for(lambda: drives_again(guarded, cell), 5.0, "driving")
        os.kill(guarded.pid, number)
        guarded.stop()
        assert not turning(cell)


def test_ctrl_c_of_the_group_leaves_the_guard_to_its_daemon(guarded: GuardedMotors, cell: CellMotors) -> None:
    """SIGINT reaches every process of a terminal; the daemon decides when the guard ends."""
    os.kill(guarded.pid, signal.SIGINT)
    guarded.drive(0.4, 0.4)
    wait_for(lambda: turning(cell), what="driving")


def test_the_dead_mans_handle_holds_a_guard_too(guarded: GuardedMotors, cell: CellMotors) -> None:
    """command(), stop() and close() mean the same as with motors in this process."""
    handle = DeadMan(guarded, MAX_AGE_S)
    decided_s = time.monotonic()
    assert handle.command(0.4, 0.3, decided_s)
    wait_for(lambda: cell.command()[1:] == (0.4, 0.3), what="driving")
    assert stopped_after_s(cell, decided_s) <= MAX_AGE_S + 0.05  # the guard was first; the handle tells it again
    assert handle.command(0.4, 0.3, time.monotonic())
    handle.stop("a test")
    assert not turning(cell)
    handle.close()
    assert not handle.command(0.4, 0.3, time.monotonic())


def test_motors_that_do_not_answer_are_told_and_tried_on(cell: CellMotors, tmp_path: Path) -> None:
    """The board's error reaches the next command; a stop that fails is tried until it works, with no daemon's help."""
    broken = tmp_path / "broken"
    where = MotorsElsewhere(f"{__name__}:FlakyMotors", {"path": cell.path, "broken": str(broken)})
    guarded = GuardedMotors(where, cell.stop, MAX_AGE_S)
    try:
        guarded.drive(0.4, 0.4)
        wait_for(lambda: turning(cell), what="driving")
        broken.touch()
        assert "Remote I/O error" in drive_until_refused(guarded)
        with pytest.raises(OperatorError, match="Remote I/O error"):
            guarded.stop()
        assert turning(cell)
        broken.unlink()
        wait_for(lambda: not turning(cell), 1.0, "the stop")
        wait_for(lambda: drives_again(guarded, cell), what="driving again")
    finally:
        guarded.close()


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("simulator.motors:CellMotors", {"path": "/nowhere/motors"}, "No such file"),
        ("simulator.motors:Wings", {}, "has no attribute 'Wings'"),
        ("no_such_board:Motors", {}, "No module named 'no_such_board'"),
    ],
)
def test_motors_that_cannot_be_opened_are_one_line(factory: str, options: "dict[str, str]", message: str) -> None:
    """What the guard could not do reaches the operator, without a traceback."""
    with pytest.raises(OperatorError, match=message) as caught:
        GuardedMotors(MotorsElsewhere(factory, options), lambda: None, MAX_AGE_S)
    assert "\n" not in str(caught.value)


def test_the_guard_is_small(guarded: GuardedMotors) -> None:
    """So small that it starts in a moment and is the last process that a board short of memory would lose."""
    assert psutil.Process(guarded.pid).memory_info().rss < 25e6
    program = (
        "import sys, serving.motor_guard, simulator.motors\nassert not {'numpy', 'msgspec', 'logging'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-S", "-c", program], check=True, cwd=ROOT, timeout=60)


def test_the_simulated_body_is_driven_through_its_guard() -> None:
    """The arena moves by what the guard wrote, and by nothing else; without real time there is no guard."""
    body = SimulatedJetbot(seed=3, fps=50)
    guarded = GuardedMotors.of(body, MAX_AGE_S)
    assert guarded is not None
    try:
        for _ in range(20):
            guarded.drive(0.4, 0.4)
            body.read(1.0)
        assert body.arena.distance_m > 0.02
        wait_for(lambda: body.read(1.0) is not None and body.arena.robot.still, 5.0, "standing")
    finally:
        guarded.close()
        body.close()
    assert GuardedMotors.of(SimulatedJetbot(seed=3, realtime=False), MAX_AGE_S) is None


def test_kill_9_of_a_real_daemon_at_random_moments(tmp_path: Path, mosquitto: Address) -> None:
    """A short `make bench-robot` chaos: motors at zero in time, every boot ends in driving, no event is lost."""
    found = chaos(tmp_path, mosquitto, kills=4, seed=int(time.time()))
    assert found["over_200_ms"] == 0, found
    assert found["unbootable"] == 0
    assert found["lost_events"] == 0
    assert found["events"] >= 5


def test_a_guard_that_ends_with_the_daemon_is_no_news() -> None:
    """A service manager ends the whole group: the guard may be gone, and back, before the daemon is."""
    from serving.daemon import Daemon

    told: List[str] = []
    daemon = Daemon.__new__(Daemon)
    daemon._ending = threading.Event()
    daemon.reporter = SimpleNamespace(emit=lambda kind, data: told.append(kind))
    daemon._guard_restarted({"cause": "ended"})
    daemon._ending.set()
    daemon._guard_restarted({"cause": "ended"})
    assert told == ["motors.guard-restarted"]
