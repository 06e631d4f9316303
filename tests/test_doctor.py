"""`jetloop-robot doctor`: each check on what it may meet, then the command as a whole."""

import ast
import contextlib
import datetime
import functools
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import doctor_machine as machine
from serving import doctor_network as network
from serving.config import EngineSettings, HardwareSettings, MqttSettings, RepositorySettings
from serving.contracts.events import RobotState, utc_now
from serving.doctor import Finding, command
from serving.errors import OperatorError
from serving.lock import only_one
from serving.status import STATUS_FILE, StatusFile
from tests.conftest import ROOT, Address, free_port
from tests.simulators.i2c import INA219, PCA9685, SCMD, SimulatedI2C

NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def jetbot(**options: Any) -> HardwareSettings:
    return HardwareSettings(kind="jetbot", options=options)


def expect(finding: Finding, level: str, *words: str) -> None:
    """The level, and words of what was found and is to be done; every failure says what to do, in one line."""
    said = f"{finding.found} -> {finding.todo}"
    assert finding.level == level, said
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert finding.todo or level == "ok" or finding.what == "doctor"


# This machine


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64\n", ["4.6.x", "Linux 32.7.1"]),
        ("# R35 (release), REVISION: 2.1, GCID: 32413640, BOARD: t186ref\n", ["5.1 ", "35.2.1"]),
        ("# R99 (release), REVISION: 1.0, BOARD: x\n", ["of an unknown number", "99.1.0"]),
    ],
)
def test_jetpack_is_told_by_its_release_file(tmp_path: Path, release: str, words: List[str]) -> None:
    """As /etc/nv_tegra_release has it."""
    (tmp_path / "release").write_text(release)
    expect(machine.jetpack("jetson-nano-trt8.2-fp16", tmp_path / "release"), "ok", *words)


def test_no_jetson_is_fine_unless_the_target_needs_one(tmp_path: Path) -> None:
    """Said plainly, either way."""
    none = tmp_path / "none"
    expect(machine.jetpack("cpu-ort-fp32", none), "ok", "this is no Jetson")
    expect(machine.jetpack("", none), "ok", "this is no Jetson")
    expect(machine.jetpack("jetson-nano-trt8.2-fp16", none), "fail", "this is no Jetson", "cpu-ort-fp32")
    none.write_text("something else")
    expect(machine.jetpack("cpu-ort-fp32", none), "warn", "not as expected")


def fake_python(folder: Path, versions: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho '{versions}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_engine_is_asked_under_its_own_python(tmp_path: Path) -> None:
    """Here: ONNX Runtime. An interpreter without it, a wrong one, and none are told apart."""
    expect(machine.engine(EngineSettings()), "ok", "cpu-ort-fp32", "onnxruntime 1.")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    expect(machine.engine(EngineSettings(python=str(bare / "bin/python"))), "fail", "needs onnxruntime and numpy")
    expect(machine.engine(EngineSettings(python=str(tmp_path / "none"))), "fail", "did not answer", "engine.python")
    expect(machine.engine(EngineSettings(python="/bin/true")), "fail", "did not answer")


def test_tensorrt_of_another_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine for TensorRT 8.2 does not load in 8.5: known before the first release comes."""
    monkeypatch.setattr(machine, "backend_file", lambda target: Path("trt_backend.py"))
    said = '{"Python": "3.6.9", "numpy": "1.13.3", "tensorrt": "%s", "pycuda": "2019.1.2", "CUDA": "10.2"}'
    for target, version, level in [
        ("jetson-nano-trt8.2-fp16", "8.2.1.8", "ok"),
        ("jetson-nano-trt8.2-fp16", "8.20.1", "fail"),
        ("xavier-nx-trt8.5-int8", "8.2.1.8", "fail"),
    ]:
        chosen = EngineSettings(target=target, python=fake_python(tmp_path, said % version))
        expect(machine.engine(chosen), level, f"tensorrt {version}", "CUDA 10.2")


def test_a_target_without_a_backend_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version of jetloop cannot run it."""

    def none(target: str) -> Path:
        raise OperatorError(f"this version of jetloop cannot run `{target}`")

    monkeypatch.setattr(machine, "backend_file", none)
    expect(machine.engine(EngineSettings()), "fail", "cannot run", "engine.target")


def test_the_versions_can_be_asked_of_python_3_6() -> None:
    """What runs under JetPack's Python keeps to its syntax."""
    ast.parse(machine._VERSIONS, feature_version=(3, 6))


def test_what_a_camera_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the program to the device to the service; the camera is never opened."""
    argus = tmp_path / "argus"
    ask = functools.partial(machine.camera, dev=tmp_path, argus=argus)
    expect(ask(HardwareSettings(kind="simulated")), "ok", "simulated")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    expect(ask(jetbot()), "fail", "apt-get install gstreamer1.0-tools")
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    expect(ask(jetbot()), "fail", "no /dev/video*", "ribbon cable")
    expect(ask(jetbot(camera="usb")), "fail", "/dev/video0 is not there")
    (tmp_path / "video0").touch()
    expect(ask(jetbot(camera="usb")), "ok", "usb, /dev/video0")
    expect(ask(jetbot()), "fail", "nvargus-daemon")
    argus.touch()
    monkeypatch.setattr(machine, "_said", lambda command: "")
    expect(ask(jetbot()), "fail", "nvidia-l4t-gstreamer")
    monkeypatch.setattr(machine, "_said", lambda command: "Factory Details")
    expect(ask(jetbot()), "ok", "csi, video0")


def test_a_body_that_is_not_installed_is_found() -> None:
    """With what there is."""
    expect(machine.body(HardwareSettings(kind="simulated")), "ok")
    expect(machine.body(HardwareSettings(kind="mybot")), "fail", "`mybot` is not installed", "simulated")


@pytest.mark.parametrize(
    ("options", "present", "level", "words"),
    [
        ({}, {PCA9685}, "ok", ["waveshare", "bus 1: 0x60"]),
        ({"board": "sparkfun"}, {PCA9685, SCMD}, "ok", ["0x5d, 0x60"]),
        ({"board": "sparkfun"}, {PCA9685}, "fail", ["0x60", "sparkfun board is at 0x5d"]),
        ({}, set(), "fail", ["no board answers", "check its cable"]),
        ({"board": "x"}, {PCA9685}, "fail", ["allowed: waveshare, adafruit, sparkfun"]),
    ],
)
def test_motor_boards_are_found_by_reading_alone(options: dict, present: set, level: str, words: List[str]) -> None:
    """The robot may be driving: nothing is written to a board."""
    bus = SimulatedI2C(*present)
    expect(machine.motor_board(jetbot(**options), lambda number: bus), level, *words)
    assert bus.writes == []
    assert bus.closed


def no_bus(number: int) -> SimulatedI2C:
    raise OperatorError(f"/dev/i2c-{number} cannot be opened")


def test_a_missing_bus_says_where_it_is() -> None:
    """Motors fail with the reason; the battery only points there."""
    expect(machine.motor_board(jetbot(i2c_bus=7), no_bus), "fail", "/dev/i2c-7 cannot be opened")
    expect(machine.battery(jetbot(), no_bus), "warn", "see motors")
    expect(machine.motor_board(HardwareSettings(kind="simulated"), no_bus), "ok")


def test_the_battery_is_measured() -> None:
    """12 V is well, 9 V wants charging, no chip is told."""
    bus = SimulatedI2C(INA219)
    for volts, level in ((12.0, "ok"), (9.0, "warn")):
        bus.closed = False
        bus.registers[INA219][0x02] = int(volts / 0.004) << 3
        expect(machine.battery(jetbot(), lambda number: bus), level, f"{volts} V")
    expect(machine.battery(jetbot(), lambda number: SimulatedI2C()), "warn", "battery = false")
    expect(machine.battery(jetbot(battery=False), no_bus), "ok", "not measured")


def test_a_clock_that_cannot_be_right_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Nano without a battery wakes in 1970: nothing signed holds then."""
    expect(machine.clock(0.0), "fail", "1970-01-01", "before jetloop was installed")
    for said, marked, level in [("yes", False, "ok"), ("no", True, "warn"), ("", True, "ok"), ("", False, "warn")]:
        monkeypatch.setattr(machine, "_said", lambda command, said=said: said)
        marker = tmp_path / "marker"
        marker.touch() if marked else marker.unlink(missing_ok=True)
        expect(machine.clock(marker=marker), level)


def test_the_disk_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is to come is judged by the one it will be in; a full or read-only disk is named."""
    expect(machine.disk(tmp_path), "ok")
    expect(machine.disk(tmp_path / "a" / "b"), "ok", "made at the first start")
    assert list(tmp_path.iterdir()) == []

    def free(mb: float) -> Callable[[object], Any]:
        return lambda folder: machine.shutil._ntuple_diskusage(10**9, 0, int(mb * 1e6))  # type: ignore[attr-defined]

    monkeypatch.setattr(machine.shutil, "disk_usage", free(500))
    expect(machine.disk(tmp_path), "warn", "500 MB free")
    monkeypatch.setattr(machine.shutil, "disk_usage", free(50))
    expect(machine.disk(tmp_path), "fail", "make room")

    def read_only(**_: object) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", read_only)
    expect(machine.disk(tmp_path), "fail", "Read-only file system", "SD card")


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The robot then stands still at a swap."""
    expect(machine.memory(), "ok")
    little = machine.psutil.virtual_memory()._replace(available=100_000_000)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: little)
    expect(machine.memory(), "warn", "100 MB of", "swap")


def test_the_running_robot_is_asked(tmp_path: Path) -> None:
    """Never started, not running, driving, standing for a reason: from its state files and its lock."""

    def says(mode: str, reason: str = "") -> None:
        state = RobotState(site="lab", robot="r", session="s", online=True, at=utc_now(), mode=mode, reason=reason)
        (tmp_path / STATUS_FILE).write_bytes(msgspec.json.encode(StatusFile(state, 1, os.getpid())))

    expect(machine.daemon(tmp_path), "warn", "never ran")
    says("driving")
    expect(machine.daemon(tmp_path), "warn", "does not run", "journalctl")
    with only_one(tmp_path):
        expect(machine.daemon(tmp_path), "ok", "driving, release none")
        says("standing", "the camera: black")
        expect(machine.daemon(tmp_path), "warn", "standing (the camera: black)")
        says("no-model")
        expect(machine.daemon(tmp_path), "warn", "release a model")


def test_the_daemons_own_versions_are_told() -> None:
    """Python's, jetloop's, and the kind of machine."""
    expect(machine.python(), "ok", "Python 3.", "jetloop ")


# The network


def certificate(folder: Path, name: str, begins: datetime.datetime, ends: datetime.datetime) -> MqttSettings:
    """A self-signed certificate with its key, as `[mqtt]` names them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), begins, ends)
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    key_path.chmod(0o600)
    return MqttSettings(host="localhost", ca=str(path), certificate=str(path), key=str(key_path))


def test_certificates_are_judged_by_their_time_and_their_keys_keeper(tmp_path: Path) -> None:
    """Good, soon at an end, expired, of the future, and a key that others can read."""
    good = certificate(tmp_path, "good", NOW - DAY, NOW + 90 * DAY)
    expect(network.certificates(good, NOW), "ok", "2027-01-30")
    expect(network.certificates(good, NOW + 70 * DAY), "warn", "renewed")
    expect(network.certificates(good, NOW + 91 * DAY), "fail", "expired on 2027-01-30")
    expect(network.certificates(good, NOW - 2 * DAY), "fail", "begins on 2026-10-31")
    os.chmod(good.key, 0o644)
    expect(network.certificates(good, NOW), "fail", "chmod 640")


def test_certificates_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """A key of another certificate, a file that is none, one that is not there; and none at all."""
    one = certificate(tmp_path, "one", NOW - DAY, NOW + DAY)
    two = certificate(tmp_path, "two", NOW - DAY, NOW + DAY)
    wrong = MqttSettings(host="localhost", ca=one.ca, certificate=one.certificate, key=two.key)
    expect(network.certificates(wrong, NOW), "fail", "not usable for TLS")
    (tmp_path / "none.pem").write_text("none")
    for name in ("none.pem", "absent.pem"):
        expect(network.certificates(MqttSettings(host="localhost", ca=str(tmp_path / name)), NOW), "fail", name)
    expect(network.certificates(MqttSettings(host="localhost"), NOW), "warn", "in the clear")
    expect(network.certificates(MqttSettings(host="localhost", tls=True), NOW), "ok")


def signed(kind: str, expires: datetime.datetime) -> bytes:
    return json.dumps(
        {"signed": {"_type": kind, "expires": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}, "signatures": []}
    ).encode()


def test_the_root_of_trust_is_read(tmp_path: Path) -> None:
    """There, of the right kind, in time."""
    root = tmp_path / "root.json"
    expect(network.root_of_trust(root, NOW), "fail", "No such file", "metadata/root.json")
    root.write_bytes(signed("root", NOW + DAY))
    expect(network.root_of_trust(root, NOW), "ok", "2026-11-02")
    expect(network.root_of_trust(root, NOW + 2 * DAY), "warn", "expired", "rotation")
    root.write_bytes(signed("timestamp", NOW + DAY))
    expect(network.root_of_trust(root, NOW), "fail", "no root metadata")


keys = st.sampled_from(["signed", "_type", "expires", "x"])
leaves = st.none() | st.integers() | st.sampled_from(["root", "2026-13-01", ""])
documents = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=100) | documents.map(lambda value: json.dumps(value).encode()))
def test_no_metadata_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever lies in the place of root.json."""
    root = tmp_path_factory.mktemp("root") / "root.json"
    root.write_bytes(content)
    expect(network.root_of_trust(root), "fail", "no root metadata")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RepositorySettings]:
    """A folder served over HTTP."""
    (tmp_path / "metadata").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield RepositorySettings(url=f"http://127.0.0.1:{server.server_port}/", root=str(tmp_path / "root.json"))
        server.shutdown()


def test_the_repository_is_asked(served: RepositorySettings, tmp_path: Path) -> None:
    """Away, empty, fresh, about to expire, expired."""
    away = RepositorySettings(url=f"http://127.0.0.1:{free_port()}", root="x")
    expect(network.repository(away), "fail", "Connection refused", "repository.url")
    expect(network.repository(served), "fail", "File not found")
    (tmp_path / "metadata/timestamp.json").write_bytes(signed("timestamp", NOW + DAY))
    expect(network.repository(served, NOW), "ok", "signed until 2026-11-02")
    expect(network.repository(served, NOW + DAY * 0.9), "warn", "jetloop release serve")
    expect(network.repository(served, NOW + 2 * DAY), "fail", "expired")


def test_a_broker_in_the_clear_is_asked(mosquitto: Address) -> None:
    """A real Mosquitto; then none."""
    expect(network.broker(MqttSettings(host=mosquitto.host, port=mosquitto.port)), "ok", "in the clear")
    gone = MqttSettings(host=mosquitto.host, port=free_port())
    expect(network.broker(gone), "fail", "Connection refused", "outbox")


def test_a_broker_with_tls_is_asked(tmp_path: Path) -> None:
    """The handshake is made: a certificate of somebody else is found here, not in the log at night."""
    now = datetime.datetime.now(datetime.timezone.utc)
    good = certificate(tmp_path, "good", now - DAY, now + 90 * DAY)
    other = certificate(tmp_path, "other", now - DAY, now + 90 * DAY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good.certificate, good.key)
    with context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as server:

        def accept() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    server.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        port = server.getsockname()[1]
        expect(network.broker(MqttSettings(host="localhost", port=port, ca=good.ca)), "ok", "TLSv1.")
        expect(network.broker(MqttSettings(host="localhost", port=port, ca=other.ca)), "fail", "mqtt.ca")


# The command


def test_the_command_on_this_machine(tmp_path: Path) -> None:
    """A table with what to do, exit code 1 for what fails; everything asked although nothing is there."""
    shown = subprocess.run([sys.executable, "-m", "serving.cli", "example-config"], cwd=ROOT, capture_output=True)
    (tmp_path / "robot.toml").write_bytes(shown.stdout)
    told = CliRunner().invoke(command, ["--config", str(tmp_path / "robot.toml")], standalone_mode=False)
    assert told.return_value == 1
    assert "ok    robot.toml     lab/jetbot-1" in told.output
    assert "this is no Jetson" in told.output
    assert "fail  root of trust" in told.output
    assert " ok, " in told.output.splitlines()[-1]
    assert "a check failed" not in told.output


def test_json_for_machines(tmp_path: Path) -> None:
    """A list; a bad robot.toml is a finding, and what needs none of it is asked all the same."""
    (tmp_path / "robot.toml").write_text("[robot\n")
    told = CliRunner().invoke(command, ["--config", str(tmp_path / "robot.toml"), "--json"], standalone_mode=False)
    found = [Finding(**entry) for entry in json.loads(told.output)]
    assert told.return_value == 1
    assert found[0].level == "fail"
    assert "not TOML" in found[0].found
    assert {"clock", "memory", "JetPack"} <= {finding.what for finding in found}


def test_a_check_that_breaks_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a finding itself."""

    def broken() -> Finding:
        raise ZeroDivisionError

    monkeypatch.setattr(machine, "memory", broken)
    told = CliRunner().invoke(command, ["--config", str(tmp_path / "none.toml"), "--json"], standalone_mode=False)
    said = [entry["found"] for entry in json.loads(told.output)]
    assert any("a check failed: ZeroDivisionError" in line for line in said)
    assert len(said) == 5
