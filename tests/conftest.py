"""Fixtures that several test files share: free ports, a real MLflow server, a real Mosquitto.

A test that needs a real server fails without it where CI=true, and is skipped on a user's machine, naming the command
that installs it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell's `make test &` has it ignored, and so would have the programs that tests start and press Ctrl-C on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Address(NamedTuple):
    host: str
    port: int


def need(program: str) -> str:
    """Path of a program that a real-server test needs, or the end of the test."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin")  # some come as wheels
    found = shutil.which(program, path=os.pathsep.join(folders))
    if found:
        return found
    message = f"{program} is not installed; `make services` adds it"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "the condition") -> None:
    """Polls until `condition` is true; fails naming `what` when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"{what} did not come true within {timeout_s} s")


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that was started in its own session, with all its children."""
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop_signal)
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue


def start(command: List[str], log: Path, **kwargs: object) -> "subprocess.Popen[bytes]":
    """Starts a server in a session of its own, its output in `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **kwargs)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Address]:
    """A Mosquitto of this test's own on loopback, without TLS."""
    program = need("mosquitto")
    port = free_port()
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = start([program, "-c", str(configuration)], tmp_path / "mosquitto.log")
    try:
        wait_for(lambda: listens(port), what="Mosquitto listening")
        yield Address("127.0.0.1", port)
    finally:
        end(process)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server (SQLite, served artifacts, webhooks to loopback allowed), shared by the tests of a worker.

    Started by `jetloop mlflow`, the command a user runs. Tests use registered models and experiments of their own
    names where they can, so that they do not see each other.
    """
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "mlflow", "--port", str(port), "--folder", str(folder / "store")]
    process = start(command, folder / "log", cwd=ROOT)
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{uri}/health"), timeout_s=90, what=f"MLflow answering ({folder / 'log'})")
        yield uri
    finally:
        end(process)
