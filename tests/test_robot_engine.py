"""The engine worker, its client and the golden check, with real worker processes."""

import os
import signal
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

import msgspec
import numpy as np
import psutil
import pytest

from serving import preprocess
from serving.config import EngineSettings
from serving.engine import loading
from serving.engine.check import TooSlow, check, read_golden
from serving.engine.client import Engine, EngineFailed
from serving.errors import OperatorError, RejectedError
from tests.conftest import ROOT, wait_for
from tests.test_robot_parts import BLACK, BRIGHT, DARK, frame_of, logits_for, make_candidate, write_network

pytestmark = pytest.mark.alone  # measures time

SETTINGS = EngineSettings()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "engine.onnx"
    write_network(path, nan_below=10)
    return path


def test_logits_come_back_for_every_frame(network: Path) -> None:
    """Each answer is the network's own for that frame, not an earlier one's."""
    engine = Engine(network, SETTINGS)
    try:
        for brightness in (BRIGHT, DARK, 128, 30, BRIGHT):
            logits = engine.infer(frame_of(brightness), 5.0)
            assert logits.shape == (2,)
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, logits_for(brightness), atol=1e-4)
        assert engine.runtime.startswith("onnxruntime ")
        assert engine.run_ms > 0
    finally:
        engine.close()
    assert not psutil.pid_exists(engine.pid)


def test_nan_is_a_failure_and_ends_the_worker(network: Path) -> None:
    """A logit that is not finite never reaches a decision."""
    engine = Engine(network, SETTINGS)
    with pytest.raises(EngineFailed, match="useless answer") as caught:
        engine.infer(frame_of(BLACK), 5.0)
    assert caught.value.cause == "bad-output"
    assert not psutil.pid_exists(engine.pid)


def test_a_killed_worker_is_noticed_at_once(network: Path) -> None:
    """kill -9 between two frames: the next one fails at once, and says by what signal."""
    engine = Engine(network, SETTINGS)
    os.kill(engine.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(EngineFailed, match="SIGKILL") as caught:
        engine.infer(frame_of(BRIGHT), 5.0)
    assert caught.value.cause == "crashed"
    assert time.monotonic() - started < 1.0


def test_a_hung_worker_is_given_up_in_time(network: Path) -> None:
    """A stopped worker costs the timeout and not more, and is ended."""
    engine = Engine(network, SETTINGS)
    os.kill(engine.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(EngineFailed, match="no answer in 100 ms") as caught:
        engine.infer(frame_of(BRIGHT), 0.1)
    assert caught.value.cause == "hung"
    assert time.monotonic() - started < 1.0
    assert not psutil.pid_exists(engine.pid)


@pytest.mark.parametrize(
    ("signal_number", "cause"), [(signal.SIGKILL, "crashed"), (signal.SIGSTOP, "hung")], ids=["killed", "stopped"]
)
def test_waiting_attentively_notices_the_same_in_the_same_time(network: Path, signal_number: int, cause: str) -> None:
    """Answers are right; a worker that goes while its answer is waited for costs no more than the timeout."""
    engine = Engine(network, SETTINGS)
    for brightness in (BRIGHT, DARK) * 10:
        engine.begin(frame_of(brightness))
        np.testing.assert_allclose(engine.result(5.0, attentive=True), logits_for(brightness), atol=1e-4)
    os.kill(engine.pid, signal.SIGSTOP)
    engine.begin(frame_of(BRIGHT))
    os.kill(engine.pid, signal_number)
    started = time.monotonic()
    with pytest.raises(EngineFailed) as caught:
        engine.result(0.2, attentive=True)
    taken_s = time.monotonic() - started
    assert caught.value.cause == cause
    assert "no answer in 200 ms" in str(caught.value) if cause == "hung" else taken_s < 0.15
    assert taken_s < 1.0


@pytest.mark.parametrize("attentive", [False, True])
def test_an_engine_that_another_thread_lets_go_has_failed(network: Path, attentive: bool) -> None:
    """Dismissed between a frame and its answer: a failure of that engine, never of the loop."""
    engine = Engine(network, SETTINGS)
    engine.begin(frame_of(BRIGHT))
    engine.kill()
    with pytest.raises(EngineFailed):
        engine.result(0.2, attentive)


def test_an_attentive_wait_is_awake_for_a_moment_only(network: Path) -> None:
    """While no answer comes the daemon's core sleeps, after a fraction of a millisecond of looking for it."""
    engine = Engine(network, SETTINGS)
    for _ in range(5):
        engine.begin(frame_of(BRIGHT))
        engine.result(5.0, attentive=True)
    os.kill(engine.pid, signal.SIGSTOP)
    engine.begin(frame_of(BRIGHT))
    before_s = time.thread_time()
    with pytest.raises(EngineFailed):
        engine.result(0.3, attentive=True)
    assert time.thread_time() - before_s < 0.1


def test_signals_to_the_group_leave_the_worker_to_its_client(network: Path) -> None:
    """Ctrl-C and a service manager signal the whole group; only the daemon decides when the worker ends."""
    engine = Engine(network, SETTINGS)
    try:
        os.kill(engine.pid, signal.SIGINT)
        os.kill(engine.pid, signal.SIGTERM)
        engine.infer(frame_of(BRIGHT), 5.0)
    finally:
        engine.close()


def test_the_worker_ends_with_its_daemon(network: Path, tmp_path: Path) -> None:
    """kill -9 of the daemon leaves no worker behind."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom serving.config import EngineSettings\n"
        "from serving.engine.client import Engine\n"
        "engine = Engine(Path(sys.argv[1]), EngineSettings())\nprint(engine.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(network)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert psutil.pid_exists(pid)
        daemon.kill()
    wait_for(lambda: not psutil.pid_exists(pid), 5.0, "the end of the worker")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be loaded"), (b"not a network", "cannot be loaded")],
    ids=["empty", "no network"],
)
def test_a_file_that_is_no_engine_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    """The runtime's own words reach the error, in one line."""
    (tmp_path / "engine.onnx").write_bytes(content)
    with pytest.raises(EngineFailed, match=message) as caught:
        Engine(tmp_path / "engine.onnx", SETTINGS)
    assert "\n" not in str(caught.value)


def test_an_interpreter_without_the_runtime_is_the_operators_business(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's interpreter sees its own packages alone, also when PYTHONPATH leads to ours; what lacks is named."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    settings = msgspec.structs.replace(SETTINGS, python=str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(OperatorError, match=r"engine\.python .* No module named"):
        Engine(network, settings)


def test_an_interpreter_that_is_not_there_is_named(network: Path) -> None:
    """A wrong path in robot.toml is an operator's error, not a broken release."""
    with pytest.raises(OperatorError, match=r"engine\.python is `/nowhere/python`"):
        Engine(network, msgspec.structs.replace(SETTINGS, python="/nowhere/python"))


def test_a_target_without_its_runtime_is_named(network: Path) -> None:
    """An interpreter without TensorRT cannot run its engines, and the message says so; the engine is not to blame."""
    with pytest.raises(OperatorError, match=r"cannot run this target: NoRuntime: no (TensorRT|pycuda)"):
        Engine(network, msgspec.structs.replace(SETTINGS, target="jetson-nano-trt8.2-fp16"))


def test_frames_of_another_shape_are_refused(network: Path) -> None:
    """Nothing but (224, 224, 3) uint8 is handed to the worker."""
    engine = Engine(network, SETTINGS)
    try:
        with pytest.raises(ValueError, match="a frame is"):
            engine.infer(np.zeros((224, 224), np.uint8), 1.0)
        with pytest.raises(ValueError, match="a frame is"):
            engine.infer(np.zeros((224, 224, 3), np.float32), 1.0)
    finally:
        engine.close()


def test_a_good_engine_passes_its_golden_check(tmp_path: Path) -> None:
    """The check measures parity and latency through the worker."""
    candidate = make_candidate(tmp_path)
    engine = Engine(candidate.engine, SETTINGS)
    try:
        checked = check(engine, candidate.passport, candidate.golden, SETTINGS)
    finally:
        engine.close()
    assert checked.parity_max_abs < 1e-3
    assert 0 < checked.latency_p50_ms <= checked.latency_p99_ms
    assert checked.inferences >= 24


@pytest.mark.parametrize(
    ("network_options", "settings", "message"),
    [
        ({"shift": 0.5}, {}, r"a logit is off by 0\.5; the passport allows 0\.01"),
        ({"nan_below": 50}, {}, "golden frame 4: the engine gave a useless answer"),
        ({}, {"max_latency_ms": 1e-3}, r"a decision takes \d+\.\d ms .*allowed here are 0\.0 ms"),
    ],
    ids=["other logits", "nan", "slow"],
)
def test_an_unfit_engine_is_refused_with_the_numbers(
    tmp_path: Path, network_options: Dict[str, Any], settings: Dict[str, Any], message: str
) -> None:
    """Other logits than the trained network's, NaN, or too slow: each is refused, and says how much."""
    candidate = make_candidate(tmp_path, **network_options)
    allowed = msgspec.structs.replace(SETTINGS, **settings)
    engine = Engine(candidate.engine, allowed)
    try:
        with pytest.raises(RejectedError, match=message):
            check(engine, candidate.passport, candidate.golden, allowed)
    finally:
        engine.close()


def test_golden_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """Broken, pickled or misshapen: one line, no traceback, nothing executed."""
    path = tmp_path / "golden.npz"
    for content in (b"", b"PK\x05\x06" + bytes(18), b"no archive"):
        path.write_bytes(content)
        with pytest.raises(RejectedError, match=r"golden\.npz holds no golden frames"):
            read_golden(path)
    np.savez(path, frames=np.array([object()]), logits=np.zeros((1, 2), np.float32))
    with pytest.raises(RejectedError, match=r"golden\.npz holds no golden frames"):
        read_golden(path)
    np.savez(path, frames=np.zeros((1, 10, 10, 3), np.uint8), logits=np.zeros((1, 2), np.float32))
    with pytest.raises(RejectedError, match="golden frames are"):
        read_golden(path)


def test_an_engine_that_was_slow_once_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy moment refuses nothing for good; an engine that is slow twice is refused."""
    passport = SimpleNamespace(
        target=SETTINGS.target, preprocessing=preprocess.PREPROCESSING, engine_key=None, release_id="r"
    )
    candidate = SimpleNamespace(passport=passport)
    monkeypatch.setattr(loading, "_PAUSE_S", 0.0)
    slow = [TooSlow("a decision takes 15 ms"), TooSlow("a decision takes 14 ms"), TooSlow("a decision takes 13 ms")]

    def once(*_: object) -> str:
        if slow:
            raise slow.pop()
        return "loaded"

    monkeypatch.setattr(loading, "_load_once", once)
    with pytest.raises(RejectedError, match="14 ms"):
        loading.load(candidate, SETTINGS, threading.Event())
    assert loading.load(candidate, SETTINGS, threading.Event()) == "loaded"
