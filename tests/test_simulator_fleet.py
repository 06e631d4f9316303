"""The simulated fleet against a real Mosquitto, the collector's store and a signed repository."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.publish
import pytest
from click.testing import CliRunner

import simulator.fleet
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.config import MqttSettings, RepositorySettings
from serving.contracts.events import wakeup_topic
from serving.contracts.releases import ReleaseRef, Rollout, Wakeup, rollout_place
from serving.errors import OperatorError
from simulator.fleet import Fleet, FleetSettings
from simulator.fleet_command import fleet as command
from simulator.fleet_faults import Faults
from simulator.fleet_robot import MAX_WAITING, Rates
from telemetry.store import Store, open_reader
from tests.conftest import ROOT, Address, end, free_port, start, wait_for
from tests.test_link_parts import Server, channel_of, files_of, passport_of

QUICK = Rates(metrics_s=0.2, state_s=0.5, events_per_min=120)


@pytest.fixture
def store(mosquitto: Address, tmp_path: Path) -> Iterator[Store]:
    """What a collector has stored that listens to the test's Mosquitto."""
    url, log = f"sqlite:///{tmp_path / 'events.db'}", tmp_path / "collector.log"
    options = ["--mqtt", f"127.0.0.1:{mosquitto.port}", "--store", url]
    process = start([sys.executable, "-m", "pipelines.cli", "collector", *options], log, cwd=ROOT)
    try:
        wait_for(lambda: log.exists() and "connected to" in log.read_text(), what="the collector connected")
        reader = open_reader(url)
        yield reader
        reader.close()
    finally:
        end(process)


def settings_of(port: int, robots: int, **changes: Any) -> FleetSettings:
    given = {"connections": robots, "duration_s": 3.0, "rates": QUICK, **changes}
    return FleetSettings(robots=robots, mqtt=lambda robot: MqttSettings(host="127.0.0.1", port=port), **given)


def run(
    settings: FleetSettings, folder: Path, on_tick: Callable[[Fleet, asyncio.Event], None] = lambda *_: None
) -> Fleet:
    async def all_of_it() -> Fleet:
        made, ended = Fleet(settings, folder), asyncio.Event()
        await made.run(lambda _: on_tick(made, ended), ended)
        return made

    return asyncio.run(all_of_it())


def events_made(made: Fleet) -> int:
    return sum(kind.made for name, kind in made.tally.kinds.items() if name != "state" and name[0] != "(")


@pytest.mark.parametrize("connections", [40, 5])
def test_everything_sent_arrives_once(mosquitto: Address, store: Store, tmp_path: Path, connections: int) -> None:
    """Connections that are cut all the time lose no event and store none twice, with a connection each or shared."""
    faults = Faults(reconnects_per_min=30.0 * connections)
    made = run(settings_of(mosquitto.port, 40, connections=connections, faults=faults), tmp_path)
    assert made.waiting == 0
    assert made.tally.breaks["broken on purpose"] > 3
    wait_for(lambda: store.count() >= events_made(made), what="all events stored")
    assert store.count() == events_made(made) > 500
    assert store.gaps(from_first=True) == []
    assert store.rejected() == []
    wait_for(lambda: {row["mode"] for row in store.robots()} == {"offline"}, what="all goodbyes stored")
    assert {(row["robot"], row["last_sequence"]) for row in store.robots()} == {
        (robot.who.robot, robot.sequence) for robot in made.robots
    }


def test_faults_are_refused_and_nothing_else(mosquitto: Address, store: Store, tmp_path: Path) -> None:
    """Malformed messages and false names are all refused by the collector; the fleet's own events are all stored."""
    made = run(settings_of(mosquitto.port, 10, faults=Faults(malformed_per_min=600, liars=5)), tmp_path)
    strange = sum(made.tally.kinds[name].acknowledged for name in ("(malformed)", "(lie)"))

    def rejected() -> int:
        return sum(int(row["times"]) for row in store.rejected())

    wait_for(lambda: rejected() >= strange and store.count() >= events_made(made), what="all of it stored")
    assert rejected() == strange > 10
    assert store.count() == events_made(made)
    assert any("in the topic" in row["reason"] for row in store.rejected())


@pytest.mark.parametrize("shared_pull", [True, False])
def test_the_fleet_follows_its_channel(mosquitto: Address, store: Store, tmp_path: Path, shared_pull: bool) -> None:
    """Each robot takes release 1 at its start and release 2 at the wake-up, and tells both as the daemon does."""
    repository = Repository.create(tmp_path / "repository", Keys.generate())
    repository.publish(files_of(1), [channel_of(1, 1)])
    server = Server(tmp_path / "repository")
    root = tmp_path / "repository" / "metadata" / "1.root.json"
    follows = RepositorySettings(url=server.url, root=str(root), poll_s=60)
    published: list[bool] = []

    def on_tick(made: Fleet, ended: asyncio.Event) -> None:
        first, second = (made.tally.rollouts.get(passport_of(version).release_id) for version in (1, 2))
        if first and first.told == 15 and not published:
            published.append(True)
            repository.publish(files_of(2), [channel_of(2, 2)])
            payload = msgspec.json.encode(Wakeup(release_id=passport_of(2).release_id, sequence=2))
            paho.mqtt.publish.single(
                wakeup_topic("champion"), payload, 1, True, hostname="127.0.0.1", port=mosquitto.port
            )
        if second and second.told == 15:
            ended.set()

    try:
        settings = settings_of(mosquitto.port, 15, duration_s=40, repository=follows, shared_pull=shared_pull)
        made = run(settings, tmp_path / "pulls", on_tick)
    finally:
        server.close()
    # TUF's consistent snapshots put a file's digest in front of its name.
    downloads = sum(path.endswith(f"{passport_of(2).engine.sha256}.engine.onnx") for path in server.asked)
    assert downloads == (1 if shared_pull else 15)
    wait_for(lambda: store.count() >= events_made(made), what="all events stored")
    swaps = [row for row in store.recent(5000) if row["type"] == "model.activated"]
    assert len(swaps) == 30
    new = [row for row in swaps if row["data"]["from"]]
    assert {(row["data"]["from"], row["data"]["to"]) for row in new} == {
        (passport_of(1).release_id, passport_of(2).release_id)
    }
    assert {row["engine"] for row in new} == {passport_of(2).engine.sha256}
    rollout = made.tally.figures()["releases"][passport_of(2).release_id]
    assert rollout["robots"] == rollout["told"] == 15
    assert 0 < rollout["last_robot_after_s"] < rollout["last_told_after_s"] + 1e-9


def test_a_release_that_fits_no_robot_is_refused_by_each(mosquitto: Address, store: Store, tmp_path: Path) -> None:
    """A ring whose target the release lacks: every robot says why, once, and stands without a model."""
    repository = Repository.create(tmp_path / "repository", Keys.generate())
    repository.publish(files_of(1), [channel_of(1, 1)])
    server = Server(tmp_path / "repository")
    root = str(tmp_path / "repository" / "metadata" / "1.root.json")
    try:
        follows = RepositorySettings(url=server.url, root=root, poll_s=0.5)
        settings = settings_of(mosquitto.port, 4, repository=follows, target="xavier-nx-trt8.5-int8")
        made = run(settings, tmp_path / "pulls")
    finally:
        server.close()
    assert made.tally.kinds["model.refused"].made == 4
    assert made.tally.kinds["avoidance.started"].made == 0
    wait_for(lambda: store.count() >= events_made(made), what="all events stored")
    refusals = [row["data"]["reason"] for row in store.recent(5000) if row["type"] == "model.refused"]
    assert refusals == ["it was not built for xavier-nx-trt8.5-int8"] * 4


def test_a_rollout_takes_its_share_and_a_withdrawal_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each robot decides by its own place in the rollout; once withdrawn none runs the release, and each says so."""
    monkeypatch.setattr(simulator.fleet, "_GOODBYE_S", 0.1)
    old, new = (
        ReleaseRef(release_id=one.release_id, model_version=one.model_version, passports=one.passports)
        for one in (channel_of(1, 1), channel_of(2, 2))
    )
    half = msgspec.structs.replace(channel_of(2, 2), schema=2, rollout=Rollout(share=0.5, previous=old))
    gone = msgspec.structs.replace(channel_of(2, 3), schema=2, withdrawn=[new.release_id])
    repository = Repository.create(tmp_path / "repository", Keys.generate())
    repository.publish(files_of(1) | files_of(2), [half])
    server = Server(tmp_path / "repository")
    root = str(tmp_path / "repository" / "metadata" / "1.root.json")
    halfway: dict[str, str] = {}

    def on_tick(made: Fleet, ended: asyncio.Event) -> None:
        runs = {robot.who.robot: robot.release for robot in made.robots}
        if not halfway and all(runs.values()):
            halfway.update(runs)
            repository.publish({}, [gone])
        if halfway and new.release_id not in runs.values():
            ended.set()

    try:
        follows = RepositorySettings(url=server.url, root=root, poll_s=0.3)
        made = run(settings_of(free_port(), 20, duration_s=20, repository=follows), tmp_path / "pulls", on_tick)
    finally:
        server.close()
    for name, release in halfway.items():
        takes = rollout_place(name, new.release_id) < 0.5
        assert release == (new if takes else old).release_id
    taken = list(halfway.values()).count(new.release_id)
    assert 0 < taken < 20
    assert made.tally.kinds["model.refused"].made == taken
    assert {robot.state().mode for robot in made.robots if not robot.release} == {"no-model"}


def test_a_broker_that_is_not_there_costs_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a broker everything is counted as made and waiting; a full memory drops, and says how many."""
    monkeypatch.setattr(simulator.fleet, "_GOODBYE_S", 0.1)
    made = run(settings_of(free_port(), 3, duration_s=1.0), tmp_path)
    assert made.waiting == events_made(made) > 0
    assert all(kind.sent == kind.acknowledged == 0 for kind in made.tally.kinds.values())
    assert any("cannot be reached" in why for why in made.tally.breaks)
    robot = made.robots[0]
    for _ in range(MAX_WAITING):
        robot.emit("collision", {})
    assert len(robot.waiting) == robot.unacknowledged == MAX_WAITING
    assert sum(kind.dropped for kind in made.tally.kinds.values()) == robot.sequence - MAX_WAITING


def test_the_command_goes_on_with_its_numbers(mosquitto: Address, store: Store, tmp_path: Path) -> None:
    """Two runs of the command: no sequence number is used twice or left out, and the tally is printed and written."""
    options = ["--mqtt", f"127.0.0.1:{mosquitto.port}", "--robots", "5", "--duration", "1", "--connections", "2"]
    options += ["--numbers", str(tmp_path / "numbers.json"), "--json", str(tmp_path / "tally.json")]
    total = 0
    for _ in range(2):
        done = CliRunner().invoke(command, [*options, "--events-per-min", "300"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "5 robots share 2 connections" in done.output
        assert "acknowledged after" in done.output
        figures = json.loads((tmp_path / "tally.json").read_text())
        total += sum(kind["made"] for name, kind in figures["messages"].items() if name != "state")
    wait_for(lambda: store.count() >= total, what="all events stored")
    assert store.count() == total
    assert store.gaps(from_first=True) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--repository", "http://127.0.0.1:1"], "needs --root"),
        (["--repository", "nowhere", "--root", "root.json"], "--repository"),
        (["--mqtt", "broker"], "is not HOST:PORT"),
        (["--site", "a/b"], "are names"),
        (["--certs", "certs", "--connections", "2"], "leave --connections out"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list[str], says: str) -> None:
    """What cannot work is said in one line before anything starts."""
    numbers = ["--numbers", str(tmp_path / "numbers.json"), "--robots", "5"]
    with pytest.raises(OperatorError, match=says):
        CliRunner().invoke(command, [*options, *numbers], catch_exceptions=False)
