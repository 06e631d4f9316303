"""`jetloop-robot run` as a process: alone, with everything absent, and with a real repository and broker."""

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Union

import msgspec
import psutil
import pytest

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.contracts.events import wakeup_topic
from serving.contracts.releases import file_path
from serving.errors import OperatorError
from serving.slots import Candidate
from serving.status import StatusFile, read_status
from tests.conftest import ROOT, Address, end, free_port, start, wait_for
from tests.test_link_parts import Listener, Server
from tests.test_robot_parts import BRIGHT, TARGET, Moved, ScriptedBody, channel_of, make_candidate

pytestmark = pytest.mark.alone  # measures time

START_S = 30.0  # of a process, on a busy machine


class LoggedBody(ScriptedBody):
    """A scripted body for a daemon in another process: what reaches the motors is written to a file."""

    def __init__(self, log: str, brightness: int = BRIGHT) -> None:
        super().__init__(brightness)
        self._log = open(log, "a", buffering=1)  # noqa: SIM115  # open as long as the body lives

    def drive(self, left: float, right: float) -> None:
        super().drive(left, right)
        self._log.write(f"{time.monotonic()} {left} {right}\n")

    def stop(self) -> None:
        super().stop()
        self._log.write(f"{time.monotonic()} 0.0 0.0\n")


class Lab:
    """A folder with a robot.toml, a signed repository, and the daemon's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = Keys.generate()
        self.repository = Repository.create(folder / "repository", self.keys)
        self.server: Optional[Server] = None
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.log = folder / "daemon.log"
        self.config = folder / "robot.toml"
        plugin = folder / "plugin" / "scripted-1.0.dist-info"
        plugin.mkdir(parents=True)
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text("[jetloop.hardware]\nscripted = tests.test_robot_daemon:LoggedBody\n")

    def configure(
        self, url: str = "", mqtt_port: int = 0, state_dir: str = "state", kind: str = "scripted", options: str = ""
    ) -> None:
        """Writes robot.toml; a server that is not given is one that nobody runs."""
        self.config.write_text(
            f"""
metrics_interval_s = 0.5
[robot]
name = "r1"
site = "lab"
state_dir = "{state_dir}"
[hardware]
kind = "{kind}"
[hardware.options]
log = "{self.folder / "motors.log"}"
{options}
[repository]
url = "{url or f"http://127.0.0.1:{free_port()}"}"
root = "repository/metadata/1.root.json"
poll_s = 60
timeout_s = 2
[mqtt]
host = "127.0.0.1"
port = {mqtt_port or free_port()}
reconnect_max_s = 1
"""
        )

    def command(self, *arguments: str) -> "tuple[list[str], dict[str, str]]":
        path = os.pathsep.join([str(self.folder / "plugin"), str(ROOT)])
        line = [sys.executable, "-m", "serving.cli", *arguments, "--config", str(self.config)]
        return line, {**os.environ, "PYTHONPATH": path}

    def start(self) -> None:
        line, environment = self.command("run")
        self.process = start(line, self.log, env=environment)

    def ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        line, environment = self.command(*arguments)
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)

    def status(self) -> Optional[StatusFile]:
        try:
            found, runs = read_status(self.folder / "state")
        except OperatorError:
            return None
        return found if runs else None

    def is_doing(self, mode: str, candidate: Optional[Candidate] = None) -> bool:
        """Whether the daemon that runs now says so itself."""
        status = self.status()
        if status is None or self.process is None or status.pid != self.process.pid or status.state.mode != mode:
            return False
        return candidate is None or status.state.engine == candidate.passport.engine.sha256

    def moves(self) -> List[Moved]:
        path = self.folder / "motors.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Moved(*map(float, line.split())) for line in lines if line.count(" ") == 2]

    def stop(self) -> float:
        """SIGTERM; how long it took, in seconds."""
        assert self.process is not None
        begun_s = time.monotonic()
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()
        return time.monotonic() - begun_s

    def publish(self, candidate: Candidate, sequence: int) -> None:
        passport = candidate.passport
        files: Dict[str, Union[bytes, Path]] = {
            passport.engine.path: candidate.engine,
            passport.golden.path: candidate.golden,
            file_path(passport.release_id, TARGET, "passport.json"): msgspec.json.encode(passport),
        }
        self.repository.publish(files, [channel_of(passport.release_id, sequence)])

    def serve(self) -> str:
        self.server = Server(self.folder / "repository")
        return self.server.url

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            end(self.process)
        if self.server is not None:
            self.server.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_alone_it_stands_still_and_says_what_it_tries(lab: Lab) -> None:
    """No model, no broker, no repository: no traceback, no motion; retries in the log; SIGTERM ends it in time."""
    lab.configure()
    lab.start()
    wait_for(lambda: lab.is_doing("no-model"), START_S, f"the mode ({lab.log})")
    wait_for(lambda: lab.log.read_text().count("trying again") >= 2, START_S, "both retries")
    told = lab.ask("status")
    assert "lab/r1, ring champion" in told.stdout
    assert "no-model" in told.stdout
    assert f"runs, process {lab.process.pid if lab.process else 0}" in told.stdout
    assert lab.stop() < 2.0
    assert "Traceback" not in lab.log.read_text()
    moves = lab.moves()
    assert moves
    assert all(move[1:] == (0.0, 0.0) for move in moves)
    assert "does not run" in lab.ask("status").stdout


def test_a_second_daemon_on_the_same_state_is_refused(lab: Lab) -> None:
    """One line that says so, exit code 1, and the first one does not notice."""
    lab.configure()
    lab.start()
    wait_for(lambda: lab.is_doing("no-model"), START_S, "the first daemon")
    second = lab.ask("run")
    assert second.returncode == 1
    assert second.stderr.startswith("error: another jetloop-robot runs with")
    assert second.stderr.count("\n") == 1
    assert lab.is_doing("no-model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_dir": "robot.toml/state"}, "cannot be written: Not a directory"),
        ({"kind": "zeppelin"}, "hardware.kind is `zeppelin`; installed here: .*scripted"),
        ({"options": "wings = 2"}, r"\[hardware.options\] does not fit .*wings"),
    ],
    ids=["state_dir", "hardware", "options"],
)
def test_what_the_operator_can_mend_is_one_line(lab: Lab, settings: Dict[str, Any], message: str) -> None:
    """A state_dir that cannot be written, a body that is not installed: exit code 1, no traceback."""
    lab.configure(**settings)
    answer = lab.ask("run")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert re.search(message, answer.stderr)


def test_the_whole_turn_on_one_robot(lab: Lab, mosquitto: Address) -> None:
    """Signed release over HTTP, wake-up over MQTT, swap while driving, lost worker, goodbye: told over MQTT, in order,
    and the engine on the robot is the one of the passport."""
    first = make_candidate(lab.folder / "first", "1")
    second = make_candidate(lab.folder / "second", "2", shift=0.001)
    listener = Listener(mosquitto.port)
    try:
        wait_for(lambda: listener.subscriptions, what="the listener")
        lab.configure(lab.serve(), mosquitto.port)
        lab.start()
        wait_for(lambda: any(state.mode == "no-model" for state in listener.states()), START_S, "the first state")
        assert all(move[1:] == (0.0, 0.0) for move in lab.moves())
        lab.publish(first, 1)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        wait_for(lambda: lab.is_doing("driving", first), START_S, f"driving with the first release ({lab.log})")
        begun = len(lab.moves())
        lab.publish(second, 2)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        wait_for(lambda: lab.is_doing("driving", second), START_S, "driving with the second release")
        assert (0.0, 0.0) not in [move[1:] for move in lab.moves()[begun:]]
        assert lab.process is not None
        (worker,) = psutil.Process(lab.process.pid).children()
        worker.kill()
        killed_s = time.monotonic()
        wait_for(lambda: [m for m in lab.moves() if m.at_s >= killed_s and m[1:] == (0.0, 0.0)], what="the stop")
        wait_for(lambda: "engine.failed" in [event.type for event in listener.events()], what="the event")
        stopped_s = time.monotonic()
        wait_for(lambda: lab.moves()[-1].at_s > stopped_s and any(lab.moves()[-1][1:]), START_S, "driving again")
        wait_for(lambda: "metrics" in [event.type for event in listener.events()], what="metrics")
        assert lab.stop() < 2.0
        stopped_s = time.monotonic()
        wait_for(lambda: not listener.states()[-1].online, what="the state offline")
        assert lab.moves()[-1][1:] == (0.0, 0.0)
        assert lab.moves()[-1].at_s <= stopped_s
        events = listener.events()
    finally:
        listener.close()
    kinds = [event.type for event in events if event.type not in ("metrics", "frame.stale")]
    assert kinds == ["robot.started", "model.activated", "model.activated", "engine.failed"]
    sequences = [event.sequence for event in events]
    assert sequences == list(range(1, len(sequences) + 1))
    activated = [event for event in events if event.type == "model.activated"]
    assert [event.release for event in activated] == [first.passport.release_id, second.passport.release_id]
    assert activated[1].data["gap_ms"] < 200
    with (lab.folder / "state" / "decisions.csv").open(newline="") as file:
        engines = [row["engine"] for row in csv.DictReader(file)]
    assert list(dict.fromkeys(engines)) == [c.passport.engine.sha256[:8] for c in (first, second)]
    assert "Traceback" not in lab.log.read_text()


def test_after_a_kill_it_boots_from_its_slot_without_a_network(lab: Lab) -> None:
    """kill -9 of the daemon; repository and broker gone: the next start drives with the model it had."""
    release = make_candidate(lab.folder / "first", "1")
    lab.publish(release, 1)
    lab.configure(lab.serve())
    lab.start()
    wait_for(lambda: lab.is_doing("driving", release), START_S, f"driving ({lab.log})")
    wait_for(lambda: (lab.folder / "state" / "slots" / "current.json").exists(), what="the commit")
    assert lab.process is not None
    workers = psutil.Process(lab.process.pid).children()
    lab.process.kill()
    lab.process.wait(10)
    wait_for(lambda: not any(worker.is_running() for worker in workers), what="the end of the worker")
    lab.configure()
    lab.start()
    wait_for(lambda: lab.is_doing("driving", release), START_S, f"driving again ({lab.log})")
    assert lab.stop() < 2.0


def test_sigterm_while_an_engine_loads_is_in_time_too(lab: Lab) -> None:
    """Neither the daemon nor its half-loaded worker stays behind."""
    lab.publish(make_candidate(lab.folder / "first", "1"), 1)
    lab.configure(lab.serve())
    lab.start()
    assert lab.process is not None
    daemon = psutil.Process(lab.process.pid)
    wait_for(daemon.children, START_S, f"a worker ({lab.log})")
    workers = daemon.children()
    assert lab.stop() < 2.0
    wait_for(lambda: not any(worker.is_running() for worker in workers), what="the end of the worker")
    assert "Traceback" not in lab.log.read_text()


def test_the_daemon_needs_nothing_of_the_platform() -> None:
    """`pip install .[device]` is enough: with torch, mlflow, dvc and our other packages barred, it imports."""
    program = """
import sys
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BARRED:
            raise ImportError(f"{name} is not on a robot")
BARRED = {"torch", "torchvision", "mlflow", "dvc", "great_expectations", "nicegui", "sqlalchemy", "pandas", "onnx",
          "scipy", "matplotlib", "rich", "pipelines", "training", "telemetry", "simulator"}
sys.meta_path.insert(0, Bar())
import serving.daemon, serving.cli
assert not BARRED & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def test_signals_are_only_taken_by_the_command() -> None:
    """Importing the daemon changes no signal handler."""
    program = (
        "import signal\nbefore = signal.getsignal(signal.SIGTERM)\nimport serving.daemon\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
