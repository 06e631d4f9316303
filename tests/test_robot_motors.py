"""The dead man's handle, measured at the motors."""

import threading
import time
from typing import Iterator

import pytest

from serving.errors import OperatorError
from serving.motors import DeadMan
from tests.conftest import wait_for
from tests.test_robot_parts import MAX_AGE_S, ScriptedBody

pytestmark = pytest.mark.alone  # measures time

SLACK_S = 0.05  # of a busy machine's clocks and threads


class Rig:
    """A body and its handle."""

    def __init__(self) -> None:
        self.body = ScriptedBody()
        self.motors = DeadMan(self.body, MAX_AGE_S)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.body.motors_fail = False
    made.motors.close()


def test_the_first_thing_is_to_stop(rig: Rig) -> None:
    """Whatever a daemon that was killed left behind, taking the handle stops the motors."""
    assert [move[1:] for move in rig.body.moves] == [(0.0, 0.0)]


def test_silence_stops_the_motors_in_time(rig: Rig) -> None:
    """One command and then nothing: zero 200 ms after the decision, with the reason."""
    decided_s = time.monotonic()
    assert rig.motors.command(0.4, 0.4, decided_s)
    wait_for(lambda: not rig.body.moving, 2.0, "the stop")
    stopped_s = rig.body.moves[-1].at_s
    assert MAX_AGE_S - 0.005 <= stopped_s - decided_s <= MAX_AGE_S + SLACK_S
    wait_for(lambda: rig.motors.reason == "no fresh decision within 200 ms", 2.0, "the reason")
    assert not rig.motors.moving


def test_steady_commands_keep_it_moving_and_stopping_works_again_after(rig: Rig) -> None:
    """Every command moves the deadline; the handle works more than once."""
    for _ in range(2):
        rig.body.moves.clear()
        for _ in range(12):
            decided_s = time.monotonic()
            rig.motors.command(0.4, 0.3, decided_s)
            time.sleep(0.04)
        assert (0.0, 0.0) not in [move[1:] for move in rig.body.moves]
        wait_for(lambda: not rig.body.moving, 2.0, "the stop")
        assert rig.body.moves[-1].at_s - decided_s <= MAX_AGE_S + SLACK_S


def test_an_old_decision_moves_nothing(rig: Rig) -> None:
    """What was decided longer ago than allowed never reaches the motors."""
    assert not rig.motors.command(0.4, 0.4, time.monotonic() - MAX_AGE_S)
    assert not rig.body.moved


def test_stop_is_at_once_and_close_is_for_good(rig: Rig) -> None:
    """After close() no command moves anything any more."""
    rig.motors.command(0.4, 0.4, time.monotonic())
    rig.motors.stop("a test")
    assert not rig.body.moving
    assert rig.motors.command(0.4, 0.4, time.monotonic())
    rig.motors.close()
    assert not rig.body.moving
    assert not rig.motors.command(0.4, 0.4, time.monotonic())
    assert not rig.body.moving
    assert rig.motors.reason == "a test"


def test_motors_that_do_not_stop_are_told_again(rig: Rig) -> None:
    """A bus that fails for a while does not end the attempts."""
    rig.motors.command(0.4, 0.4, time.monotonic())
    rig.body.motors_fail = True
    time.sleep(MAX_AGE_S + 2 * SLACK_S)  # past the deadline: it has tried, and failed
    assert rig.body.moving
    rig.body.motors_fail = False
    wait_for(lambda: not rig.body.moving, 1.0, "the stop")


def test_a_drive_that_fails_stops(rig: Rig) -> None:
    """The error reaches the caller, and the handle does not believe that it drives."""
    rig.body.motors_fail = True
    with pytest.raises(OperatorError, match="motor board"):
        rig.motors.command(0.4, 0.4, time.monotonic())
    rig.body.motors_fail = False
    wait_for(lambda: not rig.motors.moving, 1.0, "the stop")
    assert not rig.body.moving


def test_a_drive_that_hangs_does_not_keep_the_motors_from_being_stopped() -> None:
    """A command stuck on its bus, coming through late: the motors are stopped before and after."""

    class Stuck(ScriptedBody):
        released = threading.Event()

        def drive(self, left: float, right: float) -> None:
            self.released.wait(5.0)
            super().drive(left, right)

    body = Stuck()
    motors = DeadMan(body, MAX_AGE_S)
    try:
        threading.Thread(target=lambda: motors.command(0.4, 0.4, time.monotonic()), daemon=True).start()
        wait_for(lambda: len(body.moves) > 1, 2.0, "the stop while it hangs")
        assert not body.moving
        body.released.set()
        wait_for(lambda: (0.4, 0.4) in [move[1:] for move in body.moves], 2.0, "the late command")
        wait_for(lambda: not body.moving, 1.0, "the second stop")
    finally:
        body.released.set()
        motors.close()
