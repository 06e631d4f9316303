"""What bench-release runs and watches: all processes between an alias and the robots, and the marks that they leave.

Nothing here is measured within a process: the marks are what it wrote to its database, its log, its flight recorder and
to the broker. All run on this machine, so that their clocks are one.
"""

import contextlib
import hashlib
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from mlflow import MlflowClient
from paho.mqtt.enums import CallbackAPIVersion

from pipelines.demo import robot_watch, workspace
from pipelines.demo.command import LAB, ROBOT_SEED
from pipelines.demo.processes import Processes, Program, free_ports
from pipelines.demo.services import House
from pipelines.params import TrainSettings, block
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.contracts.events import Event, wakeup_topic
from serving.contracts.releases import MODEL_NAME, Wakeup, release_id
from serving.errors import OperatorError
from tests.bench.robot_rig import export
from tests.bench.telemetry_rig import Mosquitto, wait_until
from tests.conftest import ROOT
from tests.simulators.cable import Cable
from tests.simulators.promotions import register

FLEET_SITE = "fleet"
CHANNEL = "champion"
_LOOK_S = 0.01  # at the release database
_AWAITED_S = 90.0
# What the gates of params.yaml ask for and an untrained network does not earn.
METRICS = {
    **{"test/balanced_accuracy": 0.93, "test/balanced_accuracy_high": 0.96},
    **{"test/blocked_recall": 0.97, "test/blocked_recall_high": 0.99},
    **{"simulate/distance_m_per_min": 6.0, "simulate/collisions_per_100m_high": 10.0},
}
TAGS = {"validate.passed": "true", "validate.errors": "0", "validate.warnings": "0"}
# The robot shares its processors with all the rest here, so its own limit on latency (100 ms) counts alone, and not the
# ratio to what was measured at the build. An engine on probation would keep the next release waiting for minutes.
MORE_SETTINGS = """\
max_latency_ratio = 1000

[probation]
duration_s = 0
"""


class Meter(Cable):
    """The cable between the robot and the repository: counts requests and bytes, both ways, with their headers."""

    def __init__(self, uri: str) -> None:
        self.asked: list[str] = []
        self.bytes = 0
        super().__init__(uri)

    def passes(self, data: bytes, to_server: bool) -> None:
        self.bytes += len(data)
        if to_server:
            self.asked += [path.decode() for path in re.findall(rb"GET (\S+) HTTP/1.1\r\n", data)]

    def take(self) -> tuple[list[str], int]:
        """What was counted since the last call."""
        taken = (self.asked, self.bytes)
        self.asked, self.bytes = [], 0
        return taken


class JournalWatch:
    """Sees the service's attempts move from state to state, to within 10 ms: the journal itself tells whole seconds."""

    def __init__(self, database: Path) -> None:
        self.seen_unix_s: dict[tuple[str, str], float] = {}  # (version, state)
        self._database = database
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def heard_unix_s(self, version: str) -> float | None:
        """When MLflow's webhook told of a version."""
        with contextlib.closing(self._open()) as db:
            sql = "SELECT max(heard_unix_s) FROM heard WHERE channel = ? AND version = ?"
            found = db.execute(sql, (CHANNEL, version)).fetchone()[0]
        return None if found is None else float(found)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._database.resolve().as_uri()}?mode=ro", uri=True)

    def _run(self) -> None:
        sql = "SELECT t.id, a.version, t.state FROM transition t JOIN attempt a ON a.id = t.attempt_id WHERE t.id > ?"
        last = 0
        with contextlib.closing(self._open()) as db:
            while not self._ending.wait(_LOOK_S):
                for number, version, state in db.execute(sql, (last,)).fetchall():
                    self.seen_unix_s[version, state] = time.time()
                    last = max(last, number)


class Listener:
    """Hears the wake-ups, and which robots of the fleet say that they drive with a release."""

    def __init__(self, port: int) -> None:
        self.woken_unix_s: dict[str, float] = {}  # release -> the first wake-up
        self.driven_unix_s: dict[str, dict[str, float]] = {}  # release -> robot -> when it drove with it
        self.running: dict[str, str] = {}  # robot -> release
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._connected
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, *_: object) -> None:
        client.subscribe([(wakeup_topic(CHANNEL), 1), (f"jetloop/v1/{FLEET_SITE}/+/event/model.activated", 1)])

    def _heard(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic == wakeup_topic(CHANNEL):
            told = msgspec.json.decode(message.payload, type=Wakeup)
            self.woken_unix_s.setdefault(told.release_id, time.time())
            return
        event = msgspec.json.decode(message.payload, type=Event)
        robots = self.driven_unix_s.setdefault(event.release, {})
        robots.setdefault(event.robot, event.time.timestamp())
        self.running[event.robot] = event.release


class Rig:
    """MLflow, Mosquitto, the release service and one robot, as processes; a fleet when it is asked for.

    Attributes:
        meter: between the robot and the repository.
    """

    def __init__(
        self, house: House, processes: Processes, meter: Meter, watch: JournalWatch, listener: Listener
    ) -> None:
        self._house, self._processes = house, processes
        self.meter, self.watch, self.listener = meter, watch, listener
        self.client = MlflowClient(house.mlflow_url, house.mlflow_url)
        self._onnx_sha256: dict[str, str] = {}  # by version
        self._train = block(TrainSettings, ROOT / "params.yaml")
        self.network = f"{self._train.backbone} at {self._train.resolution}, untrained"

    def version(self) -> str:
        """Registers one more version, of a network of its own; returns its number."""
        seed = len(self._onnx_sha256) + 1
        network = export(self._train.backbone, seed, self._train.resolution)
        made = register(
            *(self._house.mlflow_url, MODEL_NAME, self._house.folder / "exports", seed, METRICS),
            network=network,
            more_tags=TAGS,
        )
        self._onnx_sha256[made] = hashlib.sha256(network).hexdigest()
        return made

    def release_of(self, version: str) -> str:
        return release_id(version, self._onnx_sha256[version])

    def promote(self, version: str) -> float:
        """Sets the alias as the UI does; returns when that began, as Unix time."""
        begun_unix_s = time.time()
        self.client.set_registered_model_alias(MODEL_NAME, CHANNEL, version)
        return begun_unix_s

    def first_decision_unix_s(self, version: str) -> float:
        """Waits for the robot's first decision with a version's engine, in its flight recorder.

        Raises:
            OperatorError: it does not come, or a process ended.
        """
        # For cpu-ort-fp32 the engine is the ONNX file itself.
        sha256 = self._onnx_sha256[version]
        found: list[robot_watch.Takeover] = []
        refused = f"refused {self.release_of(version)}: .*"

        def decided() -> bool:
            self._processes.check()
            if why := re.search(refused, (self._house.logs / "robot.log").read_text(errors="replace")):
                raise OperatorError(f"the robot {why[0]}")
            taken = robot_watch.takeover(robot_watch.decisions(self._house.recorder), sha256)
            found.extend([taken] if taken else [])
            return bool(found)

        self._until(decided, f"the first decision of version {version}")
        return found[0].first_decision_unix_s

    def marks(self, version: str) -> dict[str, float | None]:
        """When a version passed the places on its way, as Unix time."""
        release, sha256 = self.release_of(version), self._onnx_sha256[version]
        self._until(lambda: (version, "released") in self.watch.seen_unix_s, "the note that it is released")
        states = {state: self.watch.seen_unix_s.get((version, state)) for state in _STATES}
        logs = self._house.logs
        return {
            "heard": self.watch.heard_unix_s(version),
            **states,
            "built": _logged(logs / "releases.log", f"{sha256[:12]}: compiled for"),
            "woken": self.listener.woken_unix_s.get(release),
            "looked": _logged(logs / "robot.log", f"to run {release}:"),
            "downloaded": _logged(logs / "robot.log", rf"{release}: [\d.]+ MB in"),
            "loaded": _logged(logs / "robot.log", f"{release}: loaded by"),
        }

    def start_fleet(self, robots: int, running: str) -> None:
        """Starts simulated robots, each with a TUF client of its own, and waits until all run a version."""
        program = Program(
            "fleet",
            self._house.jetloop(
                *("simulate", "fleet", "--robots", str(robots), "--site", FLEET_SITE, "--pull", "each"),
                *("--mqtt", f"127.0.0.1:{self._house.mqtt_port}", "--repository", self._house.release_url),
                *("--root", str(self._house.releases / "metadata" / "root.json"), "--duration", "3600"),
                *("--numbers", str(self._house.folder / "numbers.json"), "--json", str(self._fleet_json)),
            ),
            lambda: self.drives(running) == robots,
        )
        self._processes.start(program)
        self._processes.wait_ready(program, _AWAITED_S)

    def drives(self, version: str) -> int:
        """How many robots of the fleet drive with a version."""
        release = self.release_of(version)
        return sum(running == release for running in list(self.listener.running.values()))

    def last_of_fleet_unix_s(self, version: str, robots: int) -> float:
        """Waits until all robots of the fleet drive with a version; when the last one did."""
        self._until(lambda: self.drives(version) == robots, f"version {version} on {robots} robots")
        return max(self.listener.driven_unix_s[self.release_of(version)].values())

    def end_fleet(self) -> dict[str, Any]:
        """Ends the fleet; what it counted itself."""
        self._processes.end("fleet", timeout_s=60)
        return dict(msgspec.json.decode(self._fleet_json.read_bytes()))

    @property
    def _fleet_json(self) -> Path:
        return self._house.folder / "fleet.json"

    def _until(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, _AWAITED_S, what)
        except OperatorError as problem:
            said = [f"{problem}; last in the logs of the release service and the robot:"]
            for log in ("releases.log", "robot.log"):
                said += (self._house.logs / log).read_text(errors="replace").splitlines()[-5:]
            raise OperatorError("\n  ".join(said)) from None


_STATES = ("pending", "gated", "compiled", "verified", "signed", "released")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Rig]:
    """All processes but the fleet, ready; with version 1 registered and no alias set yet."""
    with contextlib.ExitStack() as parts:
        broker = Mosquitto(folder / "broker")
        parts.callback(broker.close)
        mlflow_port, release_port, console_port = free_ports(3)
        house = House(folder, mlflow_port, broker.port, release_port, console_port)
        _prepare(house)
        environment = workspace.environment(house.mlflow_url)
        processes = parts.enter_context(Processes(house.logs, environment, ROOT))
        programs = {program.name: program for program in house.programs()}
        for name in ("mlflow", "releases"):
            processes.start(programs[name])
            processes.wait_ready(programs[name])
        meter = Meter(house.release_url)
        parts.callback(meter.cut)
        _write_robot(house, meter.uri)
        processes.start(house.robot())
        processes.wait_ready(house.robot())
        watch = JournalWatch(house.releases / "releases.db")
        parts.callback(watch.close)
        listener = Listener(broker.port)
        parts.callback(listener.close)
        yield Rig(house, processes, meter, watch, listener)


def _prepare(house: House) -> None:
    house.workspace.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", house.workspace)
    keys = Keys.generate()
    keys.save(house.releases / "keys")
    Repository.create(house.releases, keys)


def _write_robot(house: House, repository: str) -> None:
    house.write_robot_config(ROBOT_SEED, LAB)
    text = house.robot_config.read_text().replace(house.release_url, repository)
    house.robot_config.write_text(text + MORE_SETTINGS)


def _logged(log: Path, pattern: str) -> float | None:
    """When a log first said this, as Unix time."""
    for line in log.read_text(errors="replace").splitlines():
        if re.search(pattern, line):
            return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return None
