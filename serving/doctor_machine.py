"""Checks of this machine, for `jetloop-robot doctor`: JetPack, the engine's runtime, body, clock, disk, memory.

Where a check reads a system file, its place is an argument, for tests. What is found on a Jetson is written from
NVIDIA's documentation and not yet seen on one.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import psutil

from serving.config import EngineSettings, HardwareSettings
from serving.contracts.releases import Target
from serving.doctor import FAIL, OK, WARN, Finding
from serving.engine.client import backend_file
from serving.errors import OperatorError
from serving.hardware import base
from serving.hardware.motor_boards import BOARDS, open_bus
from serving.hardware.sensors import battery_v

_TOOL_TIMEOUT_S = 5.0
_IMPORT_TIMEOUT_S = 60.0  # TensorRT takes half a minute from a slow SD card
_MIN_DISK_MB, _LOW_DISK_MB = 200, 1000
_LOW_MEMORY_MB = 400
_LOW_BATTERY_V = 9.6  # three lithium cells at 3.2 V
# L4T, as /etc/nv_tegra_release counts, to the JetPack of that time (NVIDIA, JetPack archive).
_JETPACKS = {"32.4": "4.4", "32.5": "4.5", "32.6": "4.6", "32.7": "4.6.x", "35.1": "5.0", "35.2": "5.1"}


def python() -> Finding:
    """The daemon's own interpreter and jetloop's version."""
    found = f"Python {platform.python_version()}, jetloop {importlib.metadata.version('jetloop')}, {platform.machine()}"
    return Finding(OK, "daemon", found)


def jetpack(target: str, release: Path = Path("/etc/nv_tegra_release")) -> Finding:
    """The release of JetPack, and whether the target needs one."""
    needed = Target.parse(target).runtime == "trt" if target else False
    try:
        text = release.read_text()
    except OSError:
        found = f"this is no Jetson ({platform.machine()}, no {release})"
        if needed:
            return Finding(FAIL, "JetPack", found, f"engine.target {target} runs on a Jetson alone; cpu-ort-fp32 here")
        return Finding(OK, "JetPack", found)
    parts = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if not parts:
        return Finding(WARN, "JetPack", f"{release} is not as expected", "is this NVIDIA's Jetson Linux?")
    linux = f"{parts[1]}.{parts[2]}"
    named = _said(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
    guess = _JETPACKS.get(".".join(linux.split(".")[:2]), "of an unknown number")
    return Finding(OK, "JetPack", f"{named or guess} (Jetson Linux {linux})")


def engine(settings: EngineSettings) -> Finding:
    """Whether engine.python has what engines of the target need, asked in a process of that interpreter."""
    try:
        backend_file(settings.target)
    except OperatorError as problem:
        return Finding(FAIL, "engine", str(problem), "another engine.target, or a newer jetloop")
    interpreter = settings.python or sys.executable
    # -E: our PYTHONPATH is not that interpreter's, as for the engine worker.
    try:
        done = subprocess.run(
            [interpreter, "-E", "-c", _VERSIONS], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S
        )
        versions: Dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as problem:
        return Finding(FAIL, "engine", f"{interpreter} did not answer: {problem}", "set engine.python")
    wanted = Target.parse(settings.target)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    missing = [name for name in _NEEDS[wanted.runtime] if name not in versions]
    if missing:
        todo = f"engine.target {settings.target} needs {' and '.join(missing)} under {interpreter}; see engine.python"
        return Finding(FAIL, "engine", said, todo)
    runtime = versions[_NEEDS[wanted.runtime][0]]
    if wanted.runtime_version and not f"{runtime}.".startswith(f"{wanted.runtime_version}."):
        return Finding(FAIL, "engine", said, f"engine.target {settings.target} needs version {wanted.runtime_version}")
    return Finding(OK, "engine", f"{settings.target}: {said}")


_NEEDS = {
    "ort": ("onnxruntime", "numpy"),
    "trt": ("tensorrt", "pycuda", "numpy"),
    "trtrtx": ("tensorrt_rtx", "pycuda", "numpy"),
}
# Runs under JetPack's Python: 3.6 syntax.
_VERSIONS = """
import json, platform, sys
found = {"Python": platform.python_version()}
for name in ("numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda"):
    try:
        module = __import__(name)
        found[name] = str(getattr(module, "__version__", None) or getattr(module, "VERSION_TEXT", None) or "there")
    except Exception:
        pass
try:
    import ctypes, ctypes.util
    number = ctypes.c_int()
    runtime = ctypes.CDLL(ctypes.util.find_library("cudart") or "libcudart.so")
    if runtime.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
        found["CUDA"] = "%d.%d" % (number.value // 1000, number.value % 1000 // 10)
except Exception:
    pass
print(json.dumps(found))
"""


def body(hardware: HardwareSettings) -> Finding:
    """Whether the kind of body that robot.toml names is installed."""
    kinds = sorted({entry.name for entry in importlib.metadata.entry_points(group=base.GROUP)})
    if hardware.kind not in kinds:
        return Finding(
            FAIL, "body", f"hardware.kind `{hardware.kind}` is not installed", f"there is: {', '.join(kinds)}"
        )
    return Finding(OK, "body", hardware.kind)


def camera(hardware: HardwareSettings, dev: Path = Path("/dev"), argus: Path = Path("/tmp/argus_socket")) -> Finding:
    """Whether the camera that robot.toml names is there. It is not opened: the daemon may have it."""
    if hardware.kind != "jetbot":
        return Finding(OK, "camera", f"part of the body `{hardware.kind}`")
    nodes = sorted(node.name for node in dev.glob("video*"))
    seen = f"{', '.join(nodes) or 'no /dev/video*'}"
    if shutil.which("gst-launch-1.0") is None:
        return Finding(FAIL, "camera", seen + ", no GStreamer", "apt-get install gstreamer1.0-tools")
    if hardware.options.get("camera", "csi") == "usb":
        device = Path(str(hardware.options.get("device", "/dev/video0")))
        if not (dev / device.name).exists():
            todo = "plug it in, or set hardware.options.device"
            return Finding(FAIL, "camera", f"{device} is not there; {seen}", todo)
        if not os.access(dev / device.name, os.R_OK | os.W_OK):
            return Finding(FAIL, "camera", f"{device} is not for this user", "as root: usermod -aG video USER")
        return Finding(OK, "camera", f"usb, {device}")
    if not nodes:
        return Finding(FAIL, "camera", seen, "check the ribbon cable, robot switched off")
    if not argus.exists():
        return Finding(FAIL, "camera", f"{seen}, no camera service", "systemctl restart nvargus-daemon")
    if not _said(["gst-inspect-1.0", "nvarguscamerasrc"]):
        return Finding(FAIL, "camera", f"{seen}, no nvarguscamerasrc", "apt-get install nvidia-l4t-gstreamer")
    return Finding(OK, "camera", f"csi, {seen}")


def motor_board(hardware: HardwareSettings, open_bus: Any = open_bus) -> Finding:
    """Which of the known boards answer on the I2C bus, and whether the one of robot.toml is among them."""
    if hardware.kind != "jetbot":
        return Finding(OK, "motors", f"part of the body `{hardware.kind}`")
    number, wanted = _bus_number(hardware), str(hardware.options.get("board", "waveshare"))
    try:
        bus = open_bus(number)
    except OperatorError as problem:
        return Finding(FAIL, "motors", str(problem), "I2C is on pins 3 and 5 of the Jetson Nano, bus 1")
    try:
        there = sorted({board.address for board in BOARDS.values() if _answers(bus, board.address)})
    finally:
        bus.close()
    seen = f"bus {number}: {', '.join(f'0x{address:02x}' for address in there) or 'no board answers'}"
    if wanted not in BOARDS:
        return Finding(FAIL, "motors", f"hardware.options.board is `{wanted}`", f"allowed: {', '.join(BOARDS)}")
    if BOARDS[wanted].address not in there:
        todo = f"the {wanted} board is at 0x{BOARDS[wanted].address:02x}: check its cable, its battery, and the setting"
        return Finding(FAIL, "motors", seen, todo)
    return Finding(OK, "motors", f"{wanted}, {seen}")


def battery(hardware: HardwareSettings, open_bus: Any = open_bus) -> Finding:
    """The battery's voltage, where something measures it."""
    if hardware.kind != "jetbot" or not hardware.options.get("battery", True):
        return Finding(OK, "battery", "not measured")
    try:
        bus = open_bus(_bus_number(hardware))
    except OperatorError:
        return Finding(WARN, "battery", "the I2C bus cannot be opened", "see motors")
    try:
        volts = battery_v(bus)
    finally:
        bus.close()
    if volts is None:
        todo = "where there is none: hardware.options.battery = false"
        return Finding(WARN, "battery", "no INA219 answers at 0x41", todo)
    if volts < _LOW_BATTERY_V:
        return Finding(WARN, "battery", f"{volts:.1f} V", "charge it")
    return Finding(OK, "battery", f"{volts:.1f} V")


def clock(now_s: Optional[float] = None, marker: Path = Path("/run/systemd/timesync/synchronized")) -> Finding:
    """Whether the time can be right: releases expire, certificates begin, events carry it."""
    now_s = time.time() if now_s is None else now_s
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    installed_s = Path(__file__).stat().st_mtime
    if now_s < installed_s - 86_400:  # a day: files may have been made in another time zone
        todo = "a Jetson Nano forgets the time without power; connect it to the network, or `date --set`"
        return Finding(FAIL, "clock", f"{said}, before jetloop was installed", todo)
    told = _said(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if told == "yes" or (not told and marker.exists()):
        return Finding(OK, "clock", f"{said}, synchronised")
    return Finding(WARN, "clock", f"{said}, not synchronised", "as root: timedatectl set-ntp true")


def disk(state_dir: Path) -> Finding:
    """Whether robot.state_dir can be written, and has room."""
    folder = state_dir
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free / 1e6
    said = f"{state_dir}, {free_mb:,.0f} MB free"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"jetloop")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as problem:
        todo = f"make {folder} writable for the user that runs the daemon; a worn-out SD card turns read-only"
        return Finding(FAIL, "disk", f"{said}, cannot be written: {problem.strerror}", todo)
    if free_mb < _MIN_DISK_MB:
        return Finding(FAIL, "disk", said, f"make room: an engine and its successor take up to {_MIN_DISK_MB} MB")
    if free_mb < _LOW_DISK_MB:
        return Finding(WARN, "disk", said, "make room: the outbox grows while the broker is away")
    return Finding(OK, "disk", said + ("" if folder == state_dir else "; made at the first start"))


def memory() -> Finding:
    """Whether there is room for an engine beside the one that runs."""
    now = psutil.virtual_memory()
    said = f"{now.available / 1e6:,.0f} MB of {now.total / 1e6:,.0f} MB available"
    if now.available / 1e6 < _LOW_MEMORY_MB:
        todo = "two engines do not fit: it stands still at a swap; without a desktop: systemctl set-default multi-user"
        return Finding(WARN, "memory", said, todo)
    return Finding(OK, "memory", said)


def daemon(state_dir: Path) -> Finding:
    """What the daemon says, if it runs."""
    from serving.status import read_status

    try:
        status, runs = read_status(state_dir)
    except OperatorError:
        return Finding(WARN, "robot", "never ran with this state_dir", "systemctl start jetloop-robot")
    if not runs:
        return Finding(WARN, "robot", "does not run", "systemctl start jetloop-robot; journalctl -u jetloop-robot")
    state = status.state
    said = f"{state.mode}{f' ({state.reason})' if state.reason else ''}, release {state.release or 'none'}"
    if state.mode == "driving":
        return Finding(OK, "robot", said)
    no_model = state.mode == "no-model"
    return Finding(WARN, "robot", said, "release a model for its ring" if no_model else "journalctl -u jetloop-robot")


def _bus_number(hardware: HardwareSettings) -> int:
    number = hardware.options.get("i2c_bus", 1)
    return number if isinstance(number, int) else 1


def _answers(bus: Any, address: int) -> bool:
    try:
        bus.read_byte_data(address, 0x01)  # MODE2 of a PCA9685, ID of an SCMD: reading changes nothing
    except OSError:
        return False
    return True


def _said(command: List[str]) -> str:
    """What a program of the system says; empty when it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
