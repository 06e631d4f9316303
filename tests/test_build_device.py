"""`jetloop-robot build` against a real signed repository and the service's routes over HTTP.

TensorRT is not here. The path is run end to end twice: for `board-ort-fp32`, where nothing has to be compiled and
everything else is real, and for the Jetson Nano with stand-ins of TensorRT 8.2 and pycuda under `engine.python`
(tests/simulators/tensorrt_stand_in.py). What needs the real one: docs/jetson.md.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipelines.release.build import builder_of
from pipelines.release.builds import WaitingForBuild
from serving import build_engine, build_handin, build_order
from serving.build_engine import Limits
from serving.build_releases import build_all
from serving.engine.client import Engine
from serving.errors import OperatorError, RejectedError
from tests.build_lab import BOARD, NANO, RELEASE, Lab, golden_of, made_lab, network, sha256, toml_of
from tests.conftest import ROOT
from tests.test_robot_parts import BRIGHT, frame_of
from tests.test_tensorrt_backend import jetpack

LIMITS = Limits(timeout_s=60)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with made_lab(tmp_path) as made:
        yield made


def key_of(lab: Lab, name: str) -> Path:
    """A builder that the service knows; the path of its private key."""
    path = lab.folder / name / "builder.pem"
    lab.know(name, build_handin.new_key(path))
    return path


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine says that it is a Jetson Nano."""
    model = tmp_path / "model"
    model.write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    monkeypatch.setattr(build_engine.check_before, "__defaults__", (model,))


def test_the_first_robot_builds_and_its_twin_reuses(lab: Lab, tmp_path: Path) -> None:
    """The command as a person runs it: key, build, hand in; then the gates have a measured engine."""
    onnx, golden = network(tmp_path), golden_of()
    with pytest.raises(WaitingForBuild, match="waiting for a robot of kind board-ort-fp32 to build it"):
        builder_of(BOARD, lab.builds)(onnx, golden)
    lab.ask(BOARD, onnx, golden)
    for name in ("jetbot-1", "jetbot-2"):
        config = tmp_path / f"{name}.toml"
        config.write_text(toml_of(lab.robot(name=name)))
        command = [sys.executable, "-m", "serving.cli", "build", "--config", str(config)]
        key = subprocess.run([*command, "--new-key"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        lab.know(name, key)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = f"handed in: {RELEASE}" if name == "jetbot-1" else f"nothing waits for {BOARD}"
        assert said in done.stdout
    found = builder_of(BOARD, lab.builds)(onnx, golden)
    assert found.engine == onnx
    assert found.measured.parity_max_abs < 1e-3
    assert 0 < found.measured.latency_p50_ms <= found.measured.latency_p99_ms
    assert "onnxruntime" in found.measured.machine
    assert found.key is not None
    assert found.key.onnx_sha256 == sha256(onnx)
    assert [one.builder for one in lab.builds.listed()] == ["jetbot-1"]
    assert lab.woken == 1
    assert stat.S_IMODE((tmp_path / "jetbot-1" / "builder.pem").stat().st_mode) == 0o600


@pytest.mark.usefixtures("nano")
def test_a_jetson_builds_with_its_own_tensorrt(lab: Lab, tmp_path: Path) -> None:
    """With stand-ins of TensorRT and pycuda: the key says board, GPU, version to the last digit; a twin loads it."""
    onnx, golden = network(tmp_path), golden_of()
    lab.ask(NANO, onnx, golden)
    config = lab.robot(NANO, python=jetpack(tmp_path / "jetpack"))
    assert build_all(config, lab.url, key_of(lab, "jetbot-1"), None, LIMITS) == [RELEASE]
    found = builder_of(NANO, lab.builds)(onnx, golden)
    assert found.key is not None
    assert msgspec.structs.astuple(found.key) == ("jetson-nano", "5.3", "8.2.1.8", "fp16", sha256(onnx))
    assert "TensorRT 8.2.1.8" in found.measured.machine
    (tmp_path / "twin.engine").write_bytes(found.engine)
    engine = Engine(tmp_path / "twin.engine", config.engine, found.key)
    assert engine.infer(frame_of(BRIGHT), 5.0)[1] > 0
    engine.close()
    other = msgspec.structs.replace(config.engine, python=jetpack(tmp_path / "other", version="8.5.2.2"))
    with pytest.raises(RejectedError, match=r"built for runtime version 8\.2\.1\.8, this robot has 8\.5\.2\.2"):
        Engine(tmp_path / "twin.engine", other, found.key)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("content", "broken", "kind", "said"),
    [
        (b"no network", "", RejectedError, "cannot be built: TensorRT cannot read the ONNX file.*Einsum"),
        (b"hungry", "", RejectedError, "TensorRT built no engine.*OutOfMemory"),
        (b"network", "cuInit failed", OperatorError, "cannot build for this target: no NVIDIA driver that works"),
    ],
)
def test_what_tensorrt_does_not_build_is_told_apart(
    lab: Lab, tmp_path: Path, content: bytes, broken: str, kind: "type[Exception]", said: str
) -> None:
    """The network's fault is rejected, the machine's is the operator's; nothing is handed in."""
    ordered = order(lab, tmp_path, NANO)
    ordered.onnx.write_bytes(content)
    config = lab.robot(NANO, python=jetpack(tmp_path / "jetpack", broken=broken))
    with pytest.raises(kind, match=said):
        build_engine.make(ordered, config.engine, LIMITS)


def order(lab: Lab, folder: Path, target: str = BOARD) -> build_order.Ordered:
    """A signed order, fetched."""
    lab.ask(target, network(folder), golden_of())
    return build_order.fetch(lab.robot(target).repository, folder / "fetched", RELEASE, target)


def test_what_would_fail_late_is_looked_at_first(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another board, a newer opset, too little memory: said before the building starts."""
    ordered, settings = order(lab, tmp_path, NANO), lab.robot(NANO).engine
    model = tmp_path / "model"
    with pytest.raises(OperatorError, match="a board that says `Jetson Nano`; this one says `no Jetson`"):
        build_engine.check_before(ordered, settings, LIMITS, model)
    model.write_bytes(b"NVIDIA Jetson Xavier NX Developer Kit\0")
    with pytest.raises(OperatorError, match="this one says `NVIDIA Jetson Xavier NX Developer Kit`"):
        build_engine.check_before(ordered, settings, LIMITS, model)
    model.write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    build_engine.check_before(ordered, settings, LIMITS, model)
    newer = ordered._replace(order=msgspec.structs.replace(ordered.order, opset=17))
    with pytest.raises(RejectedError, match=r"opset 17, jetson-nano-trt8\.2-fp16 takes 13 at most"):
        build_engine.check_before(newer, settings, LIMITS, model)
    with pytest.raises(OperatorError, match=r"building needs about .* MB of memory.*--workspace-mb"):
        build_engine.check_before(ordered, settings, Limits(workspace_mb=15_000_000), model)
    int8 = msgspec.structs.replace(settings, target="jetson-nano-trt8.2-int8")
    with pytest.raises(OperatorError, match=r"there is no target `jetson-nano-trt8\.2-int8`"):
        build_engine.check_before(ordered, int8, LIMITS, model)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import time; time.sleep(60)", "longer than 1 s: give it more with --timeout-s"),
        ("import os; os.kill(os.getpid(), 9)", "killed, most likely for want of memory"),
    ],
)
def test_a_builder_that_does_not_end_well_is_named(lab: Lab, tmp_path: Path, program: str, said: str) -> None:
    """A hang and a kill by the kernel are the operator's business, in one line each."""
    ordered = order(lab, tmp_path, NANO)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}"\n')
    python.chmod(0o755)
    settings = msgspec.structs.replace(lab.robot(NANO).engine, python=str(python))
    with pytest.raises(OperatorError, match=said):
        build_engine.make(ordered, settings, Limits(timeout_s=1))


def test_a_wrong_answer_is_not_taken(lab: Lab, tmp_path: Path) -> None:
    """An engine that does not answer as the trained network did is built, measured, and refused with the numbers."""
    lab.ask(BOARD, network(tmp_path, shift=0.5), golden_of())
    with pytest.raises(RejectedError, match=r"does not take it: parity: 0\.5 > 0\.01 of a logit"):
        build_all(lab.robot(), lab.url, key_of(lab, "jetbot-1"), None, LIMITS)
    assert lab.woken == 0


def test_only_what_is_signed_is_built(lab: Lab, tmp_path: Path) -> None:
    """The service's list is a hint: an order without a signature is refused, and so is an altered file."""
    onnx, golden = network(tmp_path), golden_of()
    key = key_of(lab, "jetbot-1")
    lab.builds.request(RELEASE, WaitingForBuild(BOARD, onnx, golden))  # listed, and never published
    with pytest.raises(RejectedError, match="nothing signed asks for board-ort-fp32"):
        build_all(lab.robot(), lab.url, key, None, LIMITS)
    lab.ask(BOARD, onnx, golden)
    for file in (lab.release / "targets").rglob("*model.onnx"):
        file.write_bytes(onnx[:-1] + b"x")
    with pytest.raises(RejectedError, match="does not verify"):
        build_all(lab.robot(), lab.url, key, None, LIMITS)


def test_keys_are_guarded(tmp_path: Path) -> None:
    """No key, one that others can read, one of another kind, one that is there already: each is named."""
    path = tmp_path / "builder.pem"
    with pytest.raises(OperatorError, match="--new-key"):
        build_handin.read_key(path)
    build_handin.new_key(path)
    with pytest.raises(OperatorError, match="not overwritten"):
        build_handin.new_key(path)
    os.chmod(path, 0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        build_handin.read_key(path)
    path.write_text("no key")
    os.chmod(path, 0o600)
    with pytest.raises(OperatorError, match="cannot be used as a key"):
        build_handin.read_key(path)


def test_a_service_that_is_not_there_is_named(lab: Lab, tmp_path: Path) -> None:
    """The wrong URL, and a server that is something else."""
    key = key_of(lab, "jetbot-1")
    with pytest.raises(OperatorError, match="does not answer"):
        build_all(lab.robot(), "http://127.0.0.1:9", key, None, LIMITS)
    with pytest.raises(OperatorError, match="HTTP status 404; is --service the release service"):
        build_all(lab.robot(), f"{lab.url}/metadata", key, None, LIMITS)
