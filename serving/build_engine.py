"""From an ordered network to an engine that was measured on this board.

What could make it fail late is looked at first: board, opset, memory, disk. The building runs in a process of its own,
with a bound on its workspace and its time, so that it takes nothing else with it when the kernel ends it for want of
memory. Then the engine is loaded as the robot loads it, and runs the golden frames.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Dict, NamedTuple

import msgspec
import psutil

from serving import build_tensorrt, files
from serving.build_order import Ordered
from serving.config import EngineSettings
from serving.contracts.releases import EngineKey, Measured, Target
from serving.contracts.targets import kind_of
from serving.engine.board import MODEL_FILE, wrong_board
from serving.engine.check import measure, read_golden
from serving.engine.client import NOT_INHERITED, Engine, EngineFailed
from serving.errors import OperatorError, RejectedError

log = logging.getLogger("build")

_INFERENCES = 300  # p99 of fewer would be the maximum
_RUNTIME_MB = 600  # of TensorRT, CUDA and cuDNN in a process, roughly; not yet measured on a Jetson
_START_TIMEOUT_S = 120.0  # TensorRT takes half a minute from a slow SD card
_CANNOT_BUILD_HERE = 3  # exit code of build_tensorrt.py


class Limits(NamedTuple):
    """Bounds of one build."""

    workspace_mb: float = 256.0
    timeout_s: float = 1800.0  # a Jetson Nano takes 2 to 5 minutes


class Made(NamedTuple):
    """An engine and what is known of it."""

    engine: Path
    key: EngineKey
    measured: Measured


def check_before(ordered: Ordered, settings: EngineSettings, limits: Limits, model_file: Path = MODEL_FILE) -> None:
    """What can be known before the building starts.

    Raises:
        OperatorError: this is another board, or has too little memory or disk.
        RejectedError: the network needs a newer opset than this board's runtime takes.
    """
    order, kind = ordered.order, kind_of(settings.target)
    problem = wrong_board(kind, model_file)
    if problem:
        raise OperatorError(problem)
    if order.opset > kind.max_opset:
        raise RejectedError(f"the network is of opset {order.opset}, {kind.name} takes {kind.max_opset} at most")
    if Target.parse(kind.name).runtime != "ort":
        needed_mb = _RUNTIME_MB + (0 if ordered.prebuilt else limits.workspace_mb) + 4 * order.onnx.bytes / 1e6
        free_mb = psutil.virtual_memory().available / 1e6
        if free_mb < needed_mb:
            raise OperatorError(
                f"building needs about {needed_mb:.0f} MB of memory, {free_mb:.0f} MB are available: stop the robot "
                "(`systemctl stop jetloop-robot`) and the desktop, or give less with --workspace-mb"
            )
    free = shutil.disk_usage(ordered.golden.parent).free
    if free < 3 * order.onnx.bytes:
        raise OperatorError(f"{ordered.golden.parent}: {free / 1e6:.0f} MB are free; remove files from this disk")


def make(ordered: Ordered, settings: EngineSettings, limits: Limits) -> Made:
    """Builds, or takes what was built elsewhere, and measures.

    Raises:
        RejectedError: the network cannot be built, or the engine does not load or answer.
        OperatorError: this machine cannot build: no TensorRT, no memory, no time.
    """
    order, target = ordered.order, Target.parse(settings.target)
    engine = ordered.prebuilt or ordered.golden.with_name("built.engine")
    if target.runtime == "ort":
        engine, here = ordered.onnx, {}  # ONNX Runtime takes the file as it is
    elif ordered.prebuilt:
        here = _run([build_tensorrt.__file__], settings, limits.timeout_s)
    else:
        script = [build_tensorrt.__file__, str(ordered.onnx), str(engine), target.precision, str(limits.workspace_mb)]
        log.info("building for %s: some minutes on a Jetson, workspace %g MB", settings.target, limits.workspace_mb)
        here = _run(script, settings, limits.timeout_s)
    key = EngineKey(
        board=target.board,
        compute_capability=here.get("compute_capability", ""),
        runtime_version=here.get("runtime_version", ""),
        precision=target.precision,
        onnx_sha256=order.onnx.sha256,
    )
    return Made(engine, key, measured(engine, key, ordered.golden, settings))


def measured(engine_file: Path, key: EngineKey, golden: Path, settings: EngineSettings) -> Measured:
    """Parity and latency of an engine over the golden frames, through the engine worker, as the robot runs it.

    Raises:
        RejectedError: it does not load here, or gives a useless answer.
        OperatorError: the interpreter cannot run it.
    """
    patient = msgspec.structs.replace(settings, start_timeout_s=max(settings.start_timeout_s, _START_TIMEOUT_S))
    frames, logits = read_golden(golden)
    try:
        engine = Engine(engine_file, patient, key)
        try:
            found = measure(engine, frames, logits, patient, _INFERENCES)
            machine = f"{os.uname().machine}, {os.cpu_count()} CPUs, {engine.runtime}"
        finally:
            engine.close()
    except EngineFailed as problem:
        raise RejectedError(f"what was built does not run: {problem}") from None
    return Measured(
        parity_max_abs=found.parity_max_abs,
        latency_p50_ms=found.latency_p50_ms,
        latency_p99_ms=found.latency_p99_ms,
        machine=machine,
    )


def _run(arguments: "list[str]", settings: EngineSettings, timeout_s: float) -> Dict[str, str]:
    """Runs a program under the engine's interpreter, and reads the last line that it prints."""
    python = settings.python or sys.executable
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    try:
        done = subprocess.run(
            [python, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env=environment,
            preexec_fn=_first_to_go,
        )
    except subprocess.TimeoutExpired:
        raise OperatorError(f"it took longer than {timeout_s:g} s: give it more with --timeout-s") from None
    except OSError as problem:
        raise OperatorError(f"engine.python is `{python}`, which cannot be started: {problem.strerror}") from None
    said = " ".join(done.stderr.decode("utf-8", "replace").split())[-600:]
    if done.returncode == -signal.SIGKILL:
        raise OperatorError("the builder was killed, most likely for want of memory: stop what else runs here")
    if done.returncode == _CANNOT_BUILD_HERE:
        raise OperatorError(f"engine.python is `{python}`, which cannot build for this target: {said}")
    if done.returncode:
        raise RejectedError(f"it cannot be built: {said or f'the builder ended with {done.returncode}'}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {str(name): str(value) for name, value in found.items()}


def _first_to_go() -> None:
    """Short of memory, the kernel is to end the builder, and not the robot."""
    os.nice(10)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("700")


def digest(made: Made) -> "tuple[str, int]":
    """SHA-256 and size of the engine."""
    return files.sha256_of(made.engine), made.engine.stat().st_size
