"""A rollout end to end without MLflow: a signed repository, robots' updaters in process, reports in a real store."""

import datetime
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pipelines.params import RolloutParams
from pipelines.release import cli_rollout
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from pipelines.release.rollout_service import Reports, Rollouts
from pipelines.release.rollout_table import RolloutTable
from serving.config import RepositorySettings
from serving.contracts.events import Event
from serving.contracts.releases import Channel, rollout_place
from serving.errors import JetloopError, OperatorError
from serving.slots import Candidate, Slots
from serving.updater import Updater
from telemetry.store import Batch, Store, open_store
from tests.test_link_parts import TARGET, Server, channel_of, files_of, is_whole
from tests.test_telemetry_samples import event, state

NAMES = [f"jetbot-{number}" for number in range(12)]
PARAMS = RolloutParams(steps=(0.25, 1), step_min_s=0.0, min_robots=1, min_decisions=100)
METRICS = {"decisions": 100, "interval_s": 10.0, "blocked_rate": 0.3, "latency_p99_ms": 20.0}


def id_of(version: int) -> str:
    return channel_of(version, 1).release_id


class Robot:
    """One robot: its slots and its updater, and what drives."""

    def __init__(self, name: str, folder: Path, server: Server, probation: bool = False, place: str = "") -> None:
        self.name, self.folder, self._server = name, folder / (place or name), server
        self._root = folder / "repository" / "metadata" / "1.root.json"
        self._probation = probation
        self.activated: list[tuple[str, str]] = []  # version, cause
        self.stood: list[str] = []  # why it stood still
        self.refusals: list[tuple[str, str, str]] = []
        self.start()

    def start(self) -> None:
        """The robot starts (again), on the same disk."""
        self.slots = Slots(self.folder, probation=self._probation)
        booted = self.slots.current()
        self.drives = booted.passport.lineage.model_version if booted else ""
        self.updater = Updater(
            RepositorySettings(url=self._server.url, root=str(self._root), timeout_s=2),
            TARGET,
            "champion",
            self.slots,
            self._activate,
            lambda *told: self.refusals.append(told),
            robot=self.name,
            stand_still=self._stand_still,
        )

    def look(self) -> None:
        self.updater.check()

    def _activate(self, candidate: Candidate) -> None:
        assert is_whole(candidate)
        self.drives = candidate.passport.lineage.model_version
        self.activated.append((self.drives, candidate.cause))

    def _stand_still(self, why: str) -> None:
        self.drives = ""
        self.stood.append(why)


class Lab:
    """A repository, its rollouts with an event store, and a fleet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.release = folder / "repository"
        self.repository = Repository.create(self.release, Keys.generate())
        self.server = Server(self.release)
        self.url = f"sqlite:///{folder / 'events.db'}"
        self.store: Store = open_store(self.url)
        self.params = PARAMS
        self.rung: list[Channel] = []
        self.rollouts = self.service()
        self.robots = [Robot(name, folder, self.server) for name in NAMES]
        self._sequence = 0

    def service(self, with_store: bool = True) -> Rollouts:
        reports = Reports(self.url) if with_store else None
        return Rollouts(self.repository, RolloutTable(self.release), lambda: self.params, reports, self.rung.append)

    def release_version(self, version: int, name: str = "champion") -> Channel:
        """As the service does when the gates are passed."""
        before = self.repository.channel(name)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        plain = channel_of(version, before.sequence + 1 if before else 1, name)
        channel = self.rollouts.begin(msgspec.structs.replace(plain, issued_at=now), before)
        self.repository.publish(files_of(version), [channel])
        return channel

    def channel(self, name: str = "champion") -> Channel:
        found = self.repository.channel(name)
        assert found is not None
        return found

    def look(self, *left_out: str) -> None:
        for robot in self.robots:
            if robot.name not in left_out:
                robot.look()

    def drive(self, version: int) -> set[str]:
        return {robot.name for robot in self.robots if robot.drives == str(version)}

    def tell(self, kind: str = "metrics", robots: int = len(NAMES), **changes: object) -> None:
        """Each robot tells once, with the release that it drives."""
        events: list[Event] = []
        for robot in [one for one in self.robots if one.drives][:robots]:
            self._sequence += 1
            data = {**METRICS, **changes} if kind == "metrics" else changes
            told = event(self._sequence, kind, robot.name, release=id_of(int(robot.drives)), data=data)
            events.append(told)
        states = [state(robot.name) for robot in self.robots]
        self.store.add(Batch(events=events, states=states))

    def tag(self, version: int) -> str:
        """What MLflow is told of the rollout."""
        return self.rollouts.tags("champion", id_of(version))["release.rollout.champion"] or ""

    def command(self, *arguments: str) -> str:
        """A command of `jetloop release`, and the service's next look."""
        name, *rest = arguments
        command = getattr(cli_rollout, name)
        done = CliRunner().invoke(command, [*rest, "--folder", str(self.release)])
        if isinstance(done.exception, JetloopError):
            raise done.exception
        assert done.exit_code == 0, done.output
        self.rollouts.advance("champion")
        return done.output


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no test here can see whether the disk synced
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.store.close()
        made.server.close()


@pytest.fixture
def rolling(lab: Lab) -> Lab:
    """Version 1 on all robots, version 2 on a quarter of them."""
    lab.release_version(1)
    lab.look()
    assert lab.drive(1) == set(NAMES)
    lab.tell()
    lab.release_version(2)
    lab.look()
    return lab


def first_of(share: float) -> set[str]:
    return {name for name in NAMES if rollout_place(name, id_of(2)) < share}


def test_the_share_grows_while_the_reports_are_healthy(rolling: Lab) -> None:
    """A quarter, then all; each robot knows by itself, and one that has it already downloads nothing."""
    lab = rolling
    assert lab.drive(2) == first_of(0.25)
    assert 0 < len(first_of(0.25)) < len(NAMES)
    assert lab.drive(1) == set(NAMES) - lab.drive(2)
    assert not lab.rollouts.advance("champion"), "nobody told of it yet"
    lab.tell()
    assert lab.rollouts.advance("champion")
    assert lab.rung[-1].rollout == msgspec.structs.replace(lab.channel().rollout, share=1.0)  # type: ignore[type-var]
    lab.look()
    assert lab.drive(2) == set(NAMES)
    assert all(robot.activated == [("1", "release"), ("2", "release")] for robot in lab.robots)
    lab.tell()
    assert not lab.rollouts.advance("champion")
    statuses = [(step.release_id, step.status) for step in RolloutTable(lab.release).steps("champion")]
    assert statuses[0] == (id_of(2), "complete")
    assert lab.tag(2) == ""


def test_a_release_that_crashes_is_withdrawn_and_never_comes_back(rolling: Lab) -> None:
    """Crashes: all robots go to the one before; one that was offline all the time, and restarts, never takes it."""
    lab = rolling
    offline = sorted(lab.drive(1))[0]
    lab.tell("engine.failed", cause="crash")
    for _ in range(12):
        lab.tell("engine.failed", cause="crash")
    assert lab.rollouts.advance("champion")
    assert lab.channel().withdrawn == [id_of(2)]
    had_it = lab.drive(2)
    lab.look(offline)
    assert lab.drive(1) == set(NAMES)
    for robot in lab.robots:
        if robot.name in had_it:
            assert robot.activated[-1] == ("1", "withdrawn")
            assert robot.stood == [f"{id_of(2)} is withdrawn"]
            assert robot.refusals[-1][0] == id_of(2)
    assert "crashes" in lab.rollouts.why_withdrawn("champion", id_of(2))

    lab.release_version(3)
    assert lab.channel().withdrawn == [id_of(2)]
    assert lab.channel().rollout == msgspec.structs.replace(lab.channel().rollout, share=0.25)  # type: ignore[type-var]
    for robot in lab.robots:
        robot.start()  # over a reboot, too
        assert robot.drives == "1"
    lab.look()
    assert lab.drive(2) == set()
    assert lab.drive(1) | lab.drive(3) == set(NAMES)
    assert lab.drive(3)


def test_a_withdrawal_with_nothing_before_stands_still_and_says_why(lab: Lab) -> None:
    """The first release of a fleet is withdrawn: the robots stand, also after a reboot, until the next one comes."""
    lab.release_version(1)
    lab.look()
    said = lab.command("withdraw", "1", "--yes")
    assert "there is none before it: robots stand still" in said
    lab.look()
    for robot in lab.robots:
        assert robot.drives == ""
        assert robot.stood == [f"{id_of(1)} is withdrawn; no release before it is named"]
        robot.start()
        assert robot.drives == ""
        robot.look()
        assert len(robot.stood) == 2, "a restarted robot says it again"
    lab.release_version(2)
    lab.look()
    assert lab.drive(2) == set(NAMES)


def test_a_withdrawn_release_on_probation_does_not_keep_its_place(tmp_path: Path, lab: Lab) -> None:
    """The slot beside it holds another engine than the one to go to: it stands still, downloads that one, drives."""
    robot = Robot("late", tmp_path, lab.server, probation=True)
    lab.release_version(1)
    robot.look()
    lab.rollouts = lab.service(with_store=False)  # each to all at once
    lab.release_version(2)
    lab.release_version(3)  # `late` was off while 2 was current
    robot.look()
    assert robot.drives == "3"
    assert robot.slots.probation is not None
    lab.command("withdraw", id_of(3), "--yes")
    robot.look()
    assert robot.activated == [("1", "release"), ("3", "release"), ("2", "withdrawn")]
    robot.start()
    assert robot.drives == "2"


def test_a_withdrawn_robot_stands_until_the_one_before_can_be_brought(rolling: Lab) -> None:
    """No network for the download: it does not go on with the withdrawn one meanwhile."""
    lab = rolling
    robot = next(robot for robot in lab.robots if robot.drives == "2")
    lab.command("withdraw", "2", "--yes")
    with pytest.MonkeyPatch.context() as patched:

        def broken(candidate: Candidate) -> None:
            raise OperatorError("no memory")

        patched.setattr(robot.updater, "_activate", broken)
        with pytest.raises(OperatorError, match="no memory"):
            robot.look()
        assert robot.drives == ""
    robot.look()
    assert robot.drives == "1"


def test_people_pause_resume_and_promote(rolling: Lab) -> None:
    """Each command says what it does and does it; what cannot be done is refused in one line."""
    lab = rolling
    begun = lab.drive(2)
    said = lab.command("pause")
    assert "paused at 25%: who runs it keeps it" in said
    assert "does so when `jetloop release serve` starts" in said
    lab.tell()
    assert not lab.rollouts.advance("champion"), "healthy reports do not lift a pause"
    assert "paused at 25%" in lab.tag(2)
    fresh = Robot(sorted(first_of(0.25))[0], lab.folder, lab.server, place="fresh")
    fresh.look()
    assert fresh.activated == [("1", "previous")], "a robot of the share that comes new does not take a paused one"
    lab.look()
    assert lab.drive(2) == begun
    with pytest.raises(JetloopError, match="paused already"):
        lab.command("pause")

    lab.command("resume")
    assert lab.channel().rollout == msgspec.structs.replace(lab.channel().rollout, paused=False, share=0.25)  # type: ignore[type-var]
    lab.command("promote")
    lab.look()
    assert lab.drive(2) == set(NAMES)
    for refused, says in (("promote", "for all robots already"), ("resume", "is not paused")):
        with pytest.raises(JetloopError, match=says):
            lab.command(refused)
    with pytest.raises(JetloopError, match="no release `9`"):
        lab.command("withdraw", "9", "--yes")
    lines = "\n".join(cli_rollout.status_lines(lab.release, lab.repository))
    assert f"{id_of(2)} for all robots" in lines
    assert "all: by " in lines


def test_an_order_that_is_late_is_refused(rolling: Lab) -> None:
    """Asked for while version 2 rolled out, done after version 3 came: nothing happens to version 3."""
    lab = rolling
    table = RolloutTable(lab.release)
    order = table.ask("champion", "promote", id_of(2), "me")
    lab.release_version(3)
    before = lab.channel()
    lab.rollouts.advance("champion")
    assert lab.channel() == before
    assert "meanwhile champion runs" in table.answered(order)
    assert table.orders("champion") == []


def test_slow_or_blind_releases_wait_for_a_person(rolling: Lab) -> None:
    """Latency is in no withdraw_on: paused, with the reason for people; robots keep what they have."""
    lab = rolling
    for _ in range(4):
        lab.tell(latency_p99_ms=90.0)
    # The robots with version 1 became slow as well: the store holds what they told before.
    with sqlite3.connect(lab.folder / "events.db") as database:
        database.execute("DELETE FROM events WHERE release = ? AND sequence > ?", (id_of(1), len(NAMES)))
    assert lab.rollouts.advance("champion")
    assert lab.channel().rollout == msgspec.structs.replace(lab.channel().rollout, paused=True)  # type: ignore[type-var]
    assert "times what it was" in lab.tag(2)
    assert lab.channel().withdrawn == []


def test_without_a_store_a_release_is_for_all_at_once_and_says_so(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """No reports, no steps; the release before is named all the same, so that a withdrawal knows where to go."""
    caplog.set_level("INFO")
    lab.rollouts = lab.service(with_store=False)
    lab.release_version(1)
    assert lab.channel().rollout is None
    lab.release_version(2)
    assert lab.channel().rollout is not None
    assert "no --store is given" in caplog.text
    lab.look()
    assert lab.drive(2) == set(NAMES)
    assert not lab.rollouts.advance("champion")


def test_a_store_that_is_not_there_holds_the_rollout(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The rollout waits, one line says so, and releasing goes on."""
    lab.release_version(1)
    lab.rollouts = Rollouts(
        lab.repository, RolloutTable(lab.release), lambda: PARAMS, Reports(f"{lab.url}.none"), lab.rung.append
    )
    lab.release_version(2)
    for _ in range(3):
        assert not lab.rollouts.advance("champion")
    assert caplog.text.count("cannot be read") == 1
    assert lab.channel().rollout == msgspec.structs.replace(lab.channel().rollout, share=0.25)  # type: ignore[type-var]


def test_going_back_to_what_all_robots_ran_is_for_all_at_once(rolling: Lab) -> None:
    """A person moves the alias to a release of before: no robot waits for a step."""
    lab = rolling
    lab.command("promote")
    lab.look()
    channel = lab.release_version(1)
    assert channel.rollout is not None
    assert channel.rollout.share == 1
    lab.look()
    assert lab.drive(1) == set(NAMES)


def test_canary_first_holds_a_champion_until_canary_did_well(lab: Lab) -> None:
    """Held with a reason that says what to do; released by itself when the canary ring's reports were healthy."""
    lab.params = msgspec.structs.replace(PARAMS, canary_first=True, canary_min_s=0.0)
    lab.release_version(1)

    def reason() -> str:
        return lab.rollouts.held("champion", id_of(2))

    assert "set the alias canary on this version first" in reason()
    lab.release_version(1, "canary")
    lab.release_version(2, "canary")
    assert lab.channel("canary").rollout == msgspec.structs.replace(lab.channel("canary").rollout, share=1.0)  # type: ignore[type-var]
    assert "do not show yet" in reason()
    assert lab.rollouts.held("canary", id_of(2)) == ""
    told = event(900, "metrics", "canary-1", release=id_of(2), data=METRICS)
    lab.store.add(Batch(events=[told], states=[state("canary-1", ring="canary")]))
    assert not lab.rollouts.advance("canary")
    assert reason() == ""
    lab.params = msgspec.structs.replace(lab.params, canary_min_s=3600.0)
    assert "it must do well on canary until" in reason()
    lab.rollouts = lab.service(with_store=False)
    assert "start it with --store" in reason()
