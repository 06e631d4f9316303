"""The Jetbot as a body: options, what it tells of itself, and its end. On simulated chips and a stand-in camera."""

import inspect
import os
import signal
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from serving.errors import OperatorError
from serving.hardware import cameras, jetbot, sensors
from serving.hardware.jetbot import Jetbot
from serving.hardware.motor_boards import JetbotMotors
from serving.motors import DeadMan
from tests.conftest import ROOT, end, start, wait_for
from tests.simulators.i2c import INA219, PCA9685, SimulatedI2C


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that works."""
    path = tmp_path / "launcher"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/simulators/gst_launch.py"} well "$@"\n')
    path.chmod(0o755)
    monkeypatch.setattr(cameras, "LAUNCHER", str(path))


@pytest.fixture
def bus() -> SimulatedI2C:
    return SimulatedI2C(PCA9685, INA219)


@pytest.fixture
def body(launcher: None, bus: SimulatedI2C) -> Iterator[Jetbot]:
    made = Jetbot(bus=bus, left_alpha=0.5)
    yield made
    if not bus.closed:
        made.close()


def test_it_sees_drives_and_stops(body: Jetbot, bus: SimulatedI2C) -> None:
    """Behind the dead man's handle, as in the daemon."""
    motors = DeadMan(body, max_age_s=0.2)
    wait_for(lambda: (frame := body.read(0.5)) and motors.command(1.0, 0.5, frame.captured_at + 0.1), what="a drive")
    assert bus.outputs()[8] == pytest.approx(0.5)
    assert bus.outputs()[13] == pytest.approx(0.5)
    wait_for(lambda: not motors.moving, what="the dead man's stop")
    assert not any(bus.outputs())
    motors.close()


def test_its_motors_can_be_opened_elsewhere(body: Jetbot) -> None:
    """The guard gets the options of the motors alone, and the place of a class that takes them."""
    elsewhere = body.motors()
    assert elsewhere.factory == "serving.hardware.motor_boards:JetbotMotors"
    assert elsewhere.options == {"i2c_bus": 1, "left_alpha": 0.5}


def test_closing_stops_the_motors_and_lets_everything_go(body: Jetbot, bus: SimulatedI2C) -> None:
    """Motors first, then the bus and the camera."""
    body.drive(1.0, 1.0)
    body.close()
    assert not any(bus.outputs())
    assert bus.closed


def test_a_dead_bus_at_the_end_still_ends_the_camera(body: Jetbot, bus: SimulatedI2C) -> None:
    """And the error is told, for the motors may turn."""
    import psutil

    def cameras_running() -> bool:
        return any("gst_launch" in " ".join(child.cmdline()) for child in psutil.Process().children())

    wait_for(cameras_running, what="the camera's process")
    bus.present.clear()
    with pytest.raises(OperatorError, match="does not answer"):
        body.close()
    assert bus.closed
    assert not cameras_running()


def test_it_tells_temperature_and_battery(
    body: Jetbot, bus: SimulatedI2C, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None for what is not there, and not read again for every frame."""
    zones = {"CPU-therm": "45500", "GPU-therm": "43000", "PMIC-Die": "100000", "off": "x"}
    for number, (kind, text) in enumerate(zones.items()):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(kind + "\n")
        (zone / "temp").write_text(text + "\n")
    assert sensors.hottest_zone_c(tmp_path) == 45.5
    assert sensors.hottest_zone_c(tmp_path / "none") is None
    bus.registers[INA219][0x02] = 3000 << 3
    assert body.readings().battery_v == pytest.approx(12.0)
    assert body.readings().collisions is None
    bus.registers[INA219][0x02] = 2500 << 3
    assert body.readings().battery_v == pytest.approx(12.0)
    monkeypatch.setattr(jetbot.time, "monotonic", lambda: body._readings_until_s + 1)
    assert body.readings().battery_v == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "web"}, "camera is `web`; allowed: csi, usb"),
        ({"width": 0}, "width is 0; it must be a number from 16 to 8192"),
        ({"fps": 29.97}, "fps is 29.97"),
        ({"flip": 8}, "flip is 8"),
        ({"latency_ms": -1}, "latency_ms is -1"),
        ({"device": "/dev/video0 ! filesink"}, "it is a path such as /dev/video0"),
        ({"board": "none"}, "board is `none`"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: Dict[str, Any], message: str, bus: SimulatedI2C) -> None:
    """In one line, before anything is opened."""
    with pytest.raises(OperatorError, match=message):
        Jetbot(bus=bus, **options)


def test_an_unknown_option_is_refused(bus: SimulatedI2C) -> None:
    """By the motors' class, as a TypeError that hardware.base.load() translates."""
    with pytest.raises(TypeError, match="wheels"):
        Jetbot(bus=bus, wheels=3)


def test_the_page_shows_every_option_and_its_default() -> None:
    """docs/robot.md: what it says holds when nothing is said, does."""
    page = (ROOT / "docs/robot.md").read_text()
    block = page[page.index('    [hardware]\n    kind = "jetbot"') :].split("\n\n")[0]
    shown = tomllib.loads(textwrap.dedent(block))["hardware"]["options"]
    known = {**inspect.signature(Jetbot).parameters, **inspect.signature(JetbotMotors).parameters}
    defaults = {name: known[name].default for name in known if name not in ("bus", "motors")}
    for_csi = dict(zip(("width", "height", "fps"), jetbot._MODES["csi"], strict=True))
    assert shown == {**defaults, **for_csi, "latency_ms": jetbot._LATENCY_MS["csi"]}


SMBUS2 = """
'''In the place of smbus2, in every process of the test: a simulated bus whose outputs are written down.'''
import os, time
from tests.simulators.i2c import PCA9685, SimulatedI2C

class SMBus(SimulatedI2C):
    def __init__(self, number):
        super().__init__(PCA9685)
        self.log = os.open(os.environ["I2C_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write_i2c_block_data(self, i2c_addr, register, data):
        super().write_i2c_block_data(i2c_addr, register, data)
        os.write(self.log, b"%d %.4f %.3f\\n" % (os.getpid(), time.monotonic(), self.outputs()[8]))
"""

DRIVES = """
import sys, time
from serving.guarded_motors import GuardedMotors
from serving.hardware import cameras
from serving.hardware.jetbot import Jetbot
from serving.motors import DeadMan

cameras.LAUNCHER = sys.argv[1]
body = Jetbot(board="waveshare")
motors = DeadMan(GuardedMotors.of(body, 0.2), 0.2)
while True:
    motors.command(0.5, 0.5, time.monotonic())
    time.sleep(0.03)
"""


def test_kill_9_leaves_the_motors_at_zero(launcher: None, tmp_path: Path) -> None:
    """The motor guard, which opened the Jetbot's board in a process of its own, zeroes them within 200 ms."""
    (tmp_path / "smbus2.py").write_text(SMBUS2)
    log = tmp_path / "i2c"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "I2C_LOG": str(log)}
    command = [sys.executable, "-c", DRIVES, str(tmp_path / "launcher")]
    process = start(command, tmp_path / "log", env=environment, cwd=ROOT)

    def last() -> "tuple[int, float, float]":
        pid, at_s, output = log.read_text().splitlines()[-1].split()
        return int(pid), float(at_s), float(output)

    try:
        wait_for(lambda: log.exists() and last()[2] == 0.5, what=f"driving ({tmp_path / 'log'})")
        guard = last()[0]
        assert guard != process.pid
        killed_s = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: last()[2] == 0.0, what="motors at zero")
        assert last()[0] == guard
        assert last()[1] - killed_s < 0.2
    finally:
        end(process)
