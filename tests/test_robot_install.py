"""What a Jetbot can install and run: wheels of its platform, the worker under JetPack's Python, a small daemon."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np
import psutil
import pytest

from serving import preprocess
from serving.config import EngineSettings
from serving.engine import client
from tests.conftest import ROOT, end, free_port, need, start, wait_for

CONSTRAINTS = ROOT / "deploy/robot/constraints.txt"
GLIBC_MINOR = 27  # Ubuntu 18.04, which JetPack 4.6 is


def no_index(said: str) -> None:
    """Ends a test where packages cannot be fetched: a failure where CI=true, else skipped with the reason."""
    lines = said.strip().splitlines() or ["no package index answered"]
    message = f"packages cannot be fetched here: {lines[-1]}"
    if os.environ.get("CI") == "true":
        pytest.fail(said)
    pytest.skip(message)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what a build or a test leaves in it."""
    copy = tmp_path_factory.mktemp("source") / "jetloop"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "data")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def resolve(requirement: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Asks pip what it would install on a Jetbot: wheels alone, aarch64, glibc 2.27, Python 3.11."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(GLIBC_MINOR, 16, -1)]
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:"),
        *("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"),
        *(*platforms, "--platform=manylinux2014_aarch64", "--platform=any"),
        *(f"--target={tmp_path / 'target'}", f"--report={tmp_path / 'report.json'}", "-c", str(CONSTRAINTS)),
        requirement,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_a_robot_installs_wheels_alone(source: Path, tmp_path: Path) -> None:
    """Everything that jetloop[device] needs has a wheel for the Jetbot, and a pin in deploy/robot/constraints.txt."""
    done = resolve(f"{source}[device]", tmp_path)
    if done.returncode and re.search(r"Max retries|NewConnectionError|Temporary failure|timed out", done.stderr):
        no_index(done.stderr)
    assert done.returncode == 0, done.stderr
    pinned = {line.split("==")[0] for line in CONSTRAINTS.read_text().splitlines() if line[:1] not in ("#", "")}
    installed = json.loads((tmp_path / "report.json").read_text())["install"]
    named = {_normal(entry["metadata"]["name"]): entry["download_info"]["url"] for entry in installed}
    own = named.pop("jetloop")
    assert own.startswith("file:")
    assert set(named) == pinned
    assert all(url.endswith(".whl") for url in named.values())
    assert {"numpy", "onnxruntime", "tuf", "cryptography", "smbus2"} <= set(named)
    assert not {"torch", "mlflow", "mlflow-skinny", "dvc", "pandas", "opencv-python-headless"} & set(named)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_question_can_be_answered_with_no(tmp_path: Path) -> None:
    """What has no wheel for that platform (NVIDIA's, for glibc 2.28) is found missing by the same question."""
    done = resolve("onnxruntime==1.32.0", tmp_path)
    assert done.returncode != 0


BACKEND = '''
"""A network for one test: logits from the mean of the frame's red, in numpy alone. Python 3.6 syntax."""
import sys

import numpy as np


class Backend(object):
    def __init__(self, engine_file, threads, preprocess):
        self.name = "python %d.%d numpy %s" % (sys.version_info[0], sys.version_info[1], np.__version__)
        self.batch = np.zeros(preprocess.INPUT_SHAPE, np.float32)
        self.logits = np.full(preprocess.OUTPUT_SHAPE, np.nan, np.float32)

    def run(self):
        self.logits[0, 0] = self.batch[0, :, :, 0].mean()
        self.logits[0, 1] = self.batch[0, :, :, 2].mean()
'''


def old_pythons() -> Iterator[Tuple[str, str]]:
    """Interpreters to try, oldest first, each with the oldest numpy that has a wheel for it."""
    for version, numpy in (("3.6", "1.13.0"), ("3.7", "1.14.5"), ("3.8", "1.17.3"), ("3.11", "1.23.2")):
        folders = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin"))
        found = shutil.which(f"python{version}", path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            yield found, numpy


@pytest.fixture(scope="session")
def oldest_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The oldest interpreter here, in an environment of its own, with the oldest numpy that installs."""
    said = "there is no Python 3.6 to 3.11 here"
    for number, (python, numpy) in enumerate(old_pythons()):
        folder = tmp_path_factory.mktemp("old") / str(number)
        subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
        command = [folder / "bin/python", "-m", "pip", "install", "-q", "--only-binary=:all:", f"numpy=={numpy}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return str(folder / "bin/python")
        said = done.stderr
    no_index(said)
    return ""


@pytest.mark.timeout(180)
def test_the_worker_runs_under_the_oldest_python_and_numpy(
    oldest_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetPack 4.6 has Python 3.6 and numpy 1.13: the worker starts, answers and ends there."""
    backend = tmp_path / "serving" / "engine" / "old_backend.py"  # finds preprocess.py beside its folder
    backend.parent.mkdir(parents=True)
    backend.write_text(BACKEND)
    shutil.copy(preprocess.__file__, backend.parent.parent)
    monkeypatch.setattr(client, "backend_file", lambda target: backend)
    engine = client.Engine(tmp_path / "none", EngineSettings(python=oldest_python))
    try:
        print("the worker ran under", engine.runtime)
        assert re.match(r"python 3\.(6 numpy 1\.13|\d+ numpy 1\.)", engine.runtime)
        pixels = np.zeros(preprocess.FRAME_SHAPE, np.uint8)
        pixels[..., 0], pixels[..., 2] = 7, 9
        assert engine.infer(pixels, 5.0).tolist() == [7.0, 9.0]
    finally:
        engine.close()


BODY = '''
"""A body for one test: 30 frames a second of noise. Small, so that the daemon is what is measured."""
import time

import numpy as np

from serving.hardware.base import Frame, Hardware, Readings


class TinyBody(Hardware):
    def __init__(self):
        self._frames = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
        self._number = 0

    def read(self, timeout_s):
        time.sleep(1 / 30)
        self._number += 1
        return Frame(self._frames[self._number % 2], time.monotonic())

    def drive(self, left, right):
        pass

    def stop(self):
        pass

    def readings(self):
        return Readings()

    def close(self):
        pass
'''

LIMIT_MB = 120.0


class Told(NamedTuple):
    """What a daemon without a model was like after some seconds, and what it told systemd."""

    used_mb: float
    others_mb: List[float]
    messages: List[str]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A real `jetloop-robot run` with a small body, a Mosquitto and a repository that is away, as systemd starts it."""
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "tiny.py").write_text(BODY)
    registered = folder / "tiny-1.dist-info"
    registered.mkdir()
    (registered / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
    (registered / "entry_points.txt").write_text("[jetloop.hardware]\ntiny = tiny:TinyBody\n")
    (folder / "root.json").write_text("{}")
    port = free_port()
    (folder / "robot.toml").write_text(
        '[robot]\nname = "tiny"\nsite = "lab"\nstate_dir = "state"\n[hardware]\nkind = "tiny"\n'
        '[repository]\nurl = "http://127.0.0.1:9"\nroot = "root.json"\n'
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'
    )
    (folder / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    broker = start([need("mosquitto"), "-c", str(folder / "mosquitto.conf")], folder / "mosquitto.log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        told = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "1000000"}
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **told}
        command = [sys.executable, "-m", "serving.cli", "run", "--config", str(folder / "robot.toml")]
        process = start(command, folder / "log", env=environment, cwd=ROOT)
        try:
            wait_for((folder / "state/status.json").exists, 60, what=f"the daemon's status ({folder / 'log'})")
            began_s = time.monotonic()
            wait_for(lambda: time.monotonic() - began_s > 3, what="three seconds of running")
            assert process.poll() is None, (folder / "log").read_text()
            running = psutil.Process(process.pid)
            used_mb = running.memory_info().rss / 1e6
            others_mb = [child.memory_info().rss / 1e6 for child in running.children(recursive=True)]
        finally:
            end(process)
            end(broker)
        manager.setblocking(False)
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(manager.recv(1000).decode())
    return Told(used_mb, others_mb, messages)


def test_the_daemon_is_small(daemon: Told) -> None:
    """The daemon without the engine holds less than 120 MB."""
    print(f"the daemon holds {daemon.used_mb:.1f} MB, its other processes {daemon.others_mb}")
    assert 20 < daemon.used_mb < LIMIT_MB


def test_the_daemon_tells_systemd(daemon: Told) -> None:
    """Ready once it runs, alive all the time, what it does, and that it stops."""
    assert [message for message in daemon.messages if message in ("READY=1", "STOPPING=1")] == ["READY=1", "STOPPING=1"]
    assert daemon.messages.count("WATCHDOG=1") >= 6
    assert any(message.startswith("STATUS=no-model") for message in daemon.messages)
