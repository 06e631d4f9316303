"""The robot as a service: what systemd is told, what it is told to do, and how it is installed."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Dict, List

import pytest

from serving.systemd import Watchdog, notify
from tests.conftest import ROOT, need

UNIT = ROOT / "deploy/robot/jetloop-robot.service"
SCRIPT = ROOT / "deploy/robot/install.sh"


def settings() -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    """As sd_notify(3) does, to a socket with a path or an abstract name."""
    name = f"jetloop-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        assert notify("READY=1", {"NOTIFY_SOCKET": ("@" if abstract else "") + name})
        assert manager.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a manager that went away ends nothing: one line in the log."""
    assert not notify("READY=1", {})
    assert not caplog.records
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert "was not told READY=1" in caplog.text


def test_the_watchdog_is_petted_in_time(tmp_path: Path) -> None:
    """Three times in WATCHDOG_USEC however often it is called; never for another process, never unasked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        for other in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "soon"}):
            Watchdog({**environment, **other}).pet()
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        watchdog = Watchdog({**environment, "WATCHDOG_PID": str(os.getpid())})
        ends_s, petted = time.monotonic() + 0.35, 0
        while time.monotonic() < ends_s:
            watchdog.pet()
            try:
                petted += manager.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                time.sleep(0.001)
        assert petted == 4


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Every setting is known to a systemd of today, and rated well by its own measure of exposure."""
    program = need("systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/srv/jetloop/bin/jetloop-robot", "/bin/true"))
    verified = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        [program, "security", "--offline=true", "--threshold=30", "--no-pager", unit], capture_output=True, text=True
    )
    assert rated.returncode == 0, rated.stdout[-300:]


def test_the_service_comes_back_and_stops_the_motors() -> None:
    """For ever, after anything; and no signal reaches the motor guard that would end it before the motors stand."""
    unit = settings()
    assert (unit["Type"], unit["Restart"], unit["StartLimitIntervalSec"]) == (["notify"], ["always"], ["0"])
    assert (unit["KillMode"], unit["WatchdogSignal"]) == (["control-group"], ["SIGTERM"])
    assert int(unit["WatchdogSec"][0]) <= 10
    assert unit["MemoryMax"] == ["2G"]
    assert unit["PrivateTmp"] == ["no"], "the camera service of a Jetson listens in /tmp"
    assert {"char-video4linux rw", "char-i2c rw", "char-nv* rw"} <= set(unit["DeviceAllow"])


def test_the_installer_is_a_good_script() -> None:
    """It parses; with no root, no wheel or no Python 3.11 it ends with one line and changes nothing."""
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    for arguments in ([], ["none.whl"]):
        done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)
