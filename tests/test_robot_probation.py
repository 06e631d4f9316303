"""Probation: what puts the engine before back, what does not, and that neither disk nor reboot loses it."""

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import files
from serving.config import ProbationSettings
from serving.decide import Motion
from serving.errors import OperatorError, RejectedError
from serving.judge import MIN_DECISIONS, Tally, judge
from serving.probation import Probation
from serving.slots import Candidate, Slots
from tests.test_link_parts import channel_of, fill, install, passport_of
from tests.test_robot_parts import Heard

FRAME_S = 1 / 30


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Robot:
    """The slots of a robot and its probation; the test is its control thread and its clock."""

    def __init__(self, folder: Path, clock: Clock, **changes: Any) -> None:
        self.folder, self.clock = folder, clock
        self.settings = ProbationSettings(**changes)
        self.heard = Heard()
        self.activated: list[str] = []
        self.ended = 0
        self.broken: Exception | None = None  # raised in the place of an activation
        self.loaded: Any = None
        self.start()

    def start(self) -> None:
        """The daemon starts (again) on the same disk."""
        self.slots = Slots(self.folder, probation=True)
        self.probation = Probation(self.settings, self.slots, self._activate, self.heard, self._count_end)
        self.booted = self.probation.boot()
        self.load(self.booted)
        self.probation.look()

    def install(self, version: int) -> None:
        install(self.slots, version, version)
        self.load(self.slots.running)
        self.probation.look()

    def load(self, candidate: Candidate | None) -> None:
        self.loaded = types.SimpleNamespace(candidate=candidate, passport=candidate.passport) if candidate else None

    def drive(self, time_s: float, motion: Motion = Motion.FORWARD, latency_ms: float = 10.0) -> None:
        """Decides at 30 a second, with a look now and then, as long as the same engine drives."""
        loaded = self.loaded
        for number in range(round(time_s / FRAME_S)):
            self.clock.now_s += FRAME_S
            self.probation.decided(loaded, motion, latency_ms)
            if number % 30 == 29:
                self.probation.look()
        self.probation.look()

    def told(self) -> dict[str, Any]:
        (data,) = self.heard.of("model.rolled-back")
        return data

    def _activate(self, candidate: Candidate) -> None:
        if self.broken:
            raise self.broken
        self.activated.append(candidate.passport.lineage.model_version)
        self.load(candidate)

    def _count_end(self) -> None:
        self.ended += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("serving.probation.time", made)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no test here can see whether the disk synced
    return made


@pytest.fixture
def robot(tmp_path: Path, clock: Clock) -> Robot:
    """On probation with release 2; release 1 is the one before."""
    made = Robot(tmp_path / "slots", clock)
    made.install(1)
    made.install(2)
    return made


def boots_with(robot: Robot) -> str | None:
    found = Slots(robot.folder).current()
    return found.passport.lineage.model_version if found else None


def test_an_engine_that_drives_well_passes(robot: Robot) -> None:
    """After 120 s of driving the probation is over, on the disk too, and a waiting update is woken."""
    robot.drive(119)
    assert robot.slots.probation is not None
    robot.drive(2)
    assert robot.slots.probation is None
    assert Slots(robot.folder).probation is None
    assert (robot.activated, robot.ended, robot.heard.events) == ([], 1, [])


def test_the_first_engine_is_on_no_probation(tmp_path: Path, clock: Clock) -> None:
    """With nothing to go back to there is nothing to wait for: the next release may come at once."""
    robot = Robot(tmp_path / "slots", clock)
    robot.install(1)
    assert robot.slots.probation is None
    assert robot.slots.prepare().is_dir()


def test_during_probation_the_slot_before_is_kept(robot: Robot) -> None:
    """The next release waits: the only engine known to be good is not emptied for it."""
    with pytest.raises(OperatorError, match="on probation"):
        robot.slots.prepare()
    previous = robot.slots.previous()
    assert previous is not None
    assert previous.passport == passport_of(1)
    robot.drive(121)
    assert robot.slots.prepare() == previous.folder


@pytest.mark.parametrize(
    ("cause", "drive"),
    [
        ("latency", lambda robot: robot.drive(20, latency_ms=130)),
        ("spin", lambda robot: robot.drive(42, Motion.LEFT)),
        ("blocked-rate", lambda robot: [robot.drive(d, m) for d, m in ((39, Motion.LEFT), (0.1, Motion.FORWARD)) * 3]),
        ("engine-failed", lambda robot: [robot.load(robot.slots.running) or robot.drive(1) for _ in range(4)]),
        ("engine-failed", lambda robot: robot.probation.failing(robot.loaded.candidate, "the engine hangs")),
        ("intervention", lambda robot: [robot.probation.intervened("picked up"), robot.probation.look()]),
        ("operator", lambda robot: [robot.probation.go_back("operator", "too shy"), robot.probation.look()]),
    ],
)
def test_what_does_not_hold_puts_the_engine_before_back(
    robot: Robot, cause: str, drive: Callable[[Robot], object]
) -> None:
    """Each cause: the previous engine drives, boots, and the refusal with its reason outlives the reboot."""
    robot.drive(5)
    drive(robot)
    assert (robot.activated, boots_with(robot)) == (["1"], "1")
    told, bad = robot.told(), passport_of(2)
    assert (told["cause"], told["engine"], told["from"]) == (cause, bad.engine.sha256, bad.release_id)
    assert told["to"] == passport_of(1).release_id
    assert told["figures"]["driven_s"] > 4
    robot.start()
    assert str(robot.slots.refused(bad.engine.sha256)).startswith(f"{cause}: ")
    assert robot.slots.probation is None


def test_a_short_trouble_is_no_verdict(robot: Robot) -> None:
    """Few decisions, a turn of seconds, one restart of the engine: none of these ends a probation."""
    robot.drive(MIN_DECISIONS * FRAME_S / 2, latency_ms=500)
    robot.probation._tally.latency_ms.clear()
    robot.drive(12, Motion.LEFT)
    robot.load(robot.slots.running)
    robot.drive(5)
    assert robot.activated == []


def test_after_probation_a_person_may_touch_the_robot(robot: Robot) -> None:
    """An intervention counts during probation only; an operator's wish to go back counts always."""
    robot.drive(121)
    robot.probation.intervened("picked up")
    robot.probation.look()
    assert robot.activated == []
    robot.probation.go_back("operator", "too shy")
    robot.probation.look()
    assert (robot.activated, boots_with(robot)) == (["1"], "1")
    assert "figures" not in robot.told()


def test_probation_goes_on_after_a_power_failure(robot: Robot) -> None:
    """What was driven is remembered to ten seconds; the rest is driven after the reboot."""
    robot.drive(65)
    robot.start()
    assert robot.booted is not None
    assert robot.booted.passport == passport_of(2)
    progress = robot.slots.probation
    assert progress is not None
    assert 54 <= progress.driven_s <= 65
    assert progress.starts == 1
    robot.drive(50)
    assert robot.slots.probation is not None
    robot.drive(16)
    assert robot.slots.probation is None
    assert robot.activated == []


def test_a_boot_loop_goes_back(robot: Robot) -> None:
    """Five starts that end without a goodbye: the sixth boots with the engine before, and says why."""
    for _ in range(5):
        robot.start()
        assert robot.booted is not None
        assert robot.booted.passport == passport_of(2)
    robot.start()
    assert robot.booted is not None
    assert robot.booted.passport == passport_of(1)
    assert robot.told()["cause"] == "boot-loop"
    assert robot.activated == []  # the boot itself starts it
    assert boots_with(robot) == "1"


def test_a_daemon_that_is_stopped_is_no_boot_loop(robot: Robot) -> None:
    """Stopped on purpose ten times: still on probation with the new engine."""
    for _ in range(10):
        robot.start()
        robot.drive(1)
        robot.probation.ended_well()
    robot.start()
    assert robot.booted is not None
    assert robot.booted.passport == passport_of(2)
    progress = robot.slots.probation
    assert progress is not None
    assert progress.driven_s == pytest.approx(10, abs=1)


def test_with_nothing_intact_to_go_back_to_it_stays(robot: Robot, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged previous slot: the engine stays and is not refused, and the next release is let in at once."""
    previous = robot.slots.previous()
    assert previous is not None
    previous.engine.write_bytes(b"rust")
    robot.drive(20, latency_ms=130)
    assert (robot.activated, boots_with(robot), robot.heard.events) == ([], "2", [])
    assert "no engine to go back to" in caplog.text
    assert robot.slots.prepare() == previous.folder


def test_a_disk_that_refuses_delays_the_pointer_alone(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only for a while: the engine before drives at once, and the disk follows when it can."""
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        patched.setattr(files, "write_atomic", full)
        robot.drive(20, latency_ms=130)
        assert robot.activated == ["1"]
        assert boots_with(robot) == "2"
    robot.clock.now_s += 11
    robot.probation.look()
    assert (robot.activated, boots_with(robot)) == (["1"], "1")
    assert len(robot.heard.events) == 1


def test_an_engine_before_that_does_not_start_is_tried_again(robot: Robot) -> None:
    """Too busy to load it now: the pointer has gone back already, and every ten seconds it is tried."""
    robot.broken = RejectedError("golden frames: too slow")
    robot.drive(20, latency_ms=130)
    assert (robot.activated, boots_with(robot)) == ([], "1")
    robot.broken = None
    robot.clock.now_s += 11
    robot.probation.look()
    robot.clock.now_s += 11
    robot.probation.look()
    assert robot.activated == ["1"]


def test_a_release_that_came_meanwhile_is_not_put_back(robot: Robot) -> None:
    """While the engine before could not be started, release 3 was brought and drives: it stays."""
    robot.broken = RejectedError("golden frames: too slow")
    robot.drive(20, latency_ms=130)
    robot.broken = None
    folder = robot.slots.prepare()
    fill(folder, 3)
    robot.slots.commit(robot.slots.candidate(folder, channel_of(3, 3)))
    robot.clock.now_s += 11
    robot.probation.look()
    assert (robot.activated, boots_with(robot)) == ([], "3")


def test_a_request_is_about_the_engine_that_ran_then(robot: Robot) -> None:
    """Two who ask at once go back one step, not two."""
    robot.probation.go_back("operator", "too shy")
    robot.probation.look()
    robot.install(3)
    robot.probation.go_back("operator", "too bold")
    robot.probation.failing(robot.loaded.candidate, "the engine hangs")
    robot.probation.look()
    assert robot.activated == ["1", "1"]


def test_moving_back_to_what_ran_before_is_no_trial(robot: Robot) -> None:
    """A channel that names the release before again: it is committed without a new probation."""
    previous = robot.slots.previous()
    assert previous is not None
    robot.slots.commit(previous)
    assert boots_with(robot) == "1"
    assert robot.slots.probation is None


def test_the_thread_looks_when_it_is_asked(robot: Robot) -> None:
    """`go_back` from any thread is followed without waiting for the next look; close ends the thread."""
    robot.probation.start()
    robot.probation.go_back("operator", "too shy")
    robot.probation._thread.join(0.5)
    robot.probation.close()
    assert not robot.probation._thread.is_alive()
    assert robot.activated == ["1"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 100), st.sampled_from(Motion), st.floats(0, 1e4)), max_size=400),
    st.booleans(),
)
def test_no_tally_is_beyond_judging(steps: list[tuple[float, Motion, float]], ending: bool) -> None:
    """Whatever the clock and the engine do, the figures stay in their bounds and a verdict names its numbers."""
    tally, now_s = Tally(), 0.0
    for step_s, motion, latency_ms in steps:
        now_s += step_s
        tally.add(now_s, motion, latency_ms)
    assert 0 <= tally.blocked_rate <= 1
    assert 0 <= tally.longest_spin_s <= tally.driven_s <= 0.5 * max(len(steps), 1)
    verdict = judge(tally, ProbationSettings(), ending)
    assert verdict is None or (verdict.cause and any(letter.isdigit() for letter in verdict.detail))
