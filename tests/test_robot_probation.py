"""Probation: what puts the engine before back, what does not, and that neither disk nor reboot loses it."""

import math
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import files
from serving.config import ProbationSettings
from serving.contracts.releases import Expected, Passport
from serving.decide import Motion
from serving.errors import OperatorError, RejectedError
from serving.judge import LATENCY_FLOOR_MS, LATENCY_RATIO, MIN_DECISIONS, Bounds, Tally, bounds, judge
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


PROMISE = Expected(blocked_rate_low=0.2, blocked_rate_high=0.5, spins_per_min_high=2.0, latency_p99_ms=9.0)


def promising(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the releases that are installed promise how they drive."""
    monkeypatch.setattr("tests.test_link_parts.passport_of", lambda version: passport_of(version, expected=PROMISE))


def turn_and_go(robot: Robot, turns_s: float, goes_s: float, time_s: float, **how: Any) -> None:
    for _ in range(round(time_s / (turns_s + goes_s))):
        robot.drive(turns_s, Motion.LEFT, **how)
        robot.drive(goes_s, **how)


@pytest.mark.parametrize(
    ("cause", "says", "drive"),
    [
        ("blocked-rate", "promised are 0.2 to 0.5", lambda robot: turn_and_go(robot, 2, 1, 70)),
        ("blocked-rate", "promised are 0.2 to 0.5", lambda robot: robot.drive(70)),
        ("spin", "promised are 2 at most", lambda robot: turn_and_go(robot, 4, 8, 80)),
        ("latency", "by its passport allowed are 90 ms", lambda robot: turn_and_go(robot, 1, 2, 30, latency_ms=100)),
    ],
)
def test_a_model_is_held_to_its_promise(
    robot: Robot, monkeypatch: pytest.MonkeyPatch, cause: str, says: str, drive: Callable[[Robot], object]
) -> None:
    """What robot.toml would let pass, but is not as the passport says it drives, puts the engine before back."""
    robot.drive(121)
    promising(monkeypatch)
    robot.install(3)
    drive(robot)
    assert robot.activated == ["2"]
    told = robot.told()
    assert (told["cause"], says in told["detail"]) == (cause, True), told
    assert "spins_per_min" in told["figures"]


def test_a_model_that_drives_as_promised_passes(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the time turning, no turn long: as promised; on probation and after it nothing happens."""
    robot.drive(121)
    promising(monkeypatch)
    robot.install(3)
    turn_and_go(robot, 1, 2, 126)
    assert robot.slots.probation is None
    assert robot.activated == []


def test_robot_toml_stays_the_outer_bound() -> None:
    """A promise narrows what robot.toml allows and never widens it; one beside it does not make every drive wrong."""
    allowed = ProbationSettings(min_blocked_rate=0.3, max_blocked_rate=0.6, max_latency_p99_ms=50)
    assert bounds(allowed, None) == Bounds(50, 0.3, 0.6, math.inf)
    assert bounds(allowed, PROMISE) == Bounds(50, 0.3, 0.5, 2.0)
    beside = msgspec.structs.replace(PROMISE, blocked_rate_low=0.7, blocked_rate_high=0.9)
    assert bounds(allowed, beside) == Bounds(50, 0.3, 0.6, 2.0)
    loose = ProbationSettings(max_latency_p99_ms=1000)
    assert bounds(loose, PROMISE).latency_p99_ms == LATENCY_RATIO * PROMISE.latency_p99_ms
    quick = msgspec.structs.replace(PROMISE, latency_p99_ms=1.0)
    assert bounds(loose, quick).latency_p99_ms == LATENCY_FLOOR_MS


def test_spins_are_counted_while_they_last() -> None:
    """Ten seconds without `forward` are three spins, however many short turns come between."""
    tally = Tally()
    for number in range(int(22 / FRAME_S)):
        at_s = number * FRAME_S
        short = at_s % 2 < 1
        tally.add(at_s, Motion.LEFT if 6 <= at_s < 16.1 or short else Motion.FORWARD, 10.0)
    assert tally.spins == 3
    assert tally.spins_per_min == pytest.approx(60 * 3 / 22, rel=0.01)


def test_passports_without_a_promise_are_as_before() -> None:
    """The field is left out where there is none, so that robots from before it read such a passport."""
    assert b"expected" not in msgspec.json.encode(passport_of(1))
    with_one = passport_of(1, expected=PROMISE)
    assert msgspec.json.decode(msgspec.json.encode(with_one), type=Passport) == with_one


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
    verdict = judge(tally, ProbationSettings(), ending, PROMISE if steps and steps[0][0] > 1 else None)
    assert verdict is None or (verdict.cause and any(letter.isdigit() for letter in verdict.detail))
