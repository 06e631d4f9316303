"""What the tests of the whole daemon share: a folder with robot.toml, a signed repository, and the daemon's process."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Union

import msgspec
import pytest

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.contracts.events import RobotState, utc_now
from serving.contracts.releases import file_path
from serving.errors import OperatorError
from serving.local.requests import Answer, Request
from serving.slots import Candidate
from serving.status import CaptureStatus, StatusFile, read_status
from tests.conftest import ROOT, end, free_port, start, wait_for
from tests.test_link_parts import Server
from tests.test_robot_parts import BRIGHT, TARGET, Moved, ScriptedBody, channel_of

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
        (plugin / "entry_points.txt").write_text("[jetloop.hardware]\nscripted = tests.robot_lab:LoggedBody\n")

    def configure(
        self, url: str = "", mqtt_port: int = 0, state_dir: str = "state", kind: str = "scripted", options: str = ""
    ) -> None:
        """Writes robot.toml; a server that is not given is one that nobody runs."""
        log = f'log = "{self.folder / "motors.log"}"' if kind == "scripted" else ""
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
{log}
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

    def publish(self, candidate: Candidate, sequence: int, channel: str = "champion") -> None:
        passport = candidate.passport
        files: Dict[str, Union[bytes, Path]] = {
            passport.engine.path: candidate.engine,
            passport.golden.path: candidate.golden,
            file_path(passport.release_id, TARGET, "passport.json"): msgspec.json.encode(passport),
        }
        told = msgspec.structs.replace(channel_of(passport.release_id, sequence), channel=channel)
        self.repository.publish(files, [told])

    def bring_up(self, release: Candidate, mqtt_port: int = 0) -> None:
        """Publishes a first release, starts the daemon, and waits until it drives with it."""
        self.publish(release, 1)
        self.configure(self.serve(), mqtt_port)
        self.start()
        self.until("driving", release)

    def until(self, mode: str, candidate: Optional[Candidate] = None) -> None:
        """Waits until the daemon says that it does this, with this release."""
        release = candidate.passport.release_id if candidate else "any release"
        wait_for(lambda: self.is_doing(mode, candidate), START_S, f"{mode} with {release} ({self.log})")

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


def status(**state: Any) -> StatusFile:
    given = {"site": "lab", "robot": "r1", "session": "s", "online": True, "at": utc_now(), "mode": "driving", **state}
    return StatusFile(RobotState(**given), 1, 1, 0.25, "forward", 5.0, [], CaptureStatus())


class Told:
    """In the place of the orders."""

    def __init__(self) -> None:
        self.heard: list[Request] = []

    def do(self, request: Request, by: str) -> Answer:
        self.heard.append(request)
        return Answer(ok=True, said=by, status=status())
