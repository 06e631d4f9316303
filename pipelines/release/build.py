"""From a model's ONNX file to the engine of one target, measured with the golden frames.

`cpu-ort-fp32` takes the ONNX file as it is, `cpu-ort-int8` the quantised one in the form that a CPU runs best. What has
to be built or measured on a board is in builds.py. Whether what was measured is good enough is for gates.py to say.
"""

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.release.builds import Builds, build_elsewhere
from pipelines.release.built import Built, Golden
from serving import preprocess
from serving.contracts.releases import Measured
from serving.contracts.targets import HERE, kind_of
from serving.errors import RejectedError, first_line

WARM_UP_RUNS = 10
RUNS = 100  # a round; p99 of fewer would be the maximum
ROUNDS = 3
QUIET_RATIO = 1.5  # p99 to p50 of a round that nothing disturbed: more of them would tell the same
MAX_MEASURING_S = 5.0


Builder = Callable[[bytes, Golden], Built]  # ONNX file of the target's precision: fp32, or int8 in QDQ form


def builder_of(target: str, builds: Builds | None = None) -> Builder:
    """The builder of a target. One that needs a board it does not have raises WaitingForBuild when it is called.

    Args:
        builds: what robots built and handed in; None: nothing.

    Raises:
        RejectedError: this is no name of a target.
        OperatorError: the table of targets has no such row.
    """
    kind = kind_of(target)
    if kind.built == HERE:
        return BUILDERS[target]
    return functools.partial(build_elsewhere, kind, builds)


def build_ort_fp32(onnx: bytes, golden: Golden) -> Built:
    """Loads the ONNX file with ONNX Runtime on one CPU thread, as the robot does, and measures it.

    Raises:
        RejectedError: ONNX Runtime cannot load it, or its input or output is not what serving/preprocess.py says.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime's own exceptions share no other base
        line = first_line(problem)[:200]
        raise RejectedError(f"ONNX Runtime cannot load the model ({line}): export it again with `dvc repro`") from None
    _check_ends(session)
    batch = np.empty(preprocess.INPUT_SHAPE, np.float32)

    def infer(frame: np.ndarray) -> np.ndarray:
        preprocess.into(frame, batch)  # type: ignore[no-untyped-call]
        return np.asarray(session.run([preprocess.OUTPUT_NAME], {preprocess.INPUT_NAME: batch})[0])

    parity = max(float(np.abs(infer(f)[0] - want).max()) for f, want in zip(golden.frames, golden.logits, strict=True))
    p50_ms, p99_ms = measure_latency(lambda: infer(golden.frames[0]))
    machine = f"{_cpu()}, {os.cpu_count()} CPUs, onnxruntime {ort.__version__}, 1 thread"
    return Built(onnx, Measured(parity_max_abs=parity, latency_p50_ms=p50_ms, latency_p99_ms=p99_ms, machine=machine))


def build_ort_int8(onnx: bytes, golden: Golden) -> Built:
    """Turns the quantised ONNX file into the form for a CPU (pipelines/quantize.py), and measures that as fp32 is.

    Raises:
        RejectedError: as `build_ort_fp32`, or the file is not quantised.
    """
    from google.protobuf.message import DecodeError

    from pipelines.quantize import for_cpu, is_int8

    try:
        quantised = is_int8(onnx)
    except DecodeError:
        quantised = False
    if not quantised:
        raise RejectedError("the model is no int8 ONNX file: set export.int8 to auto or yes and run `dvc repro`")
    return build_ort_fp32(for_cpu(onnx), golden)


def measure_latency(infer: Callable[[], object]) -> tuple[float, float]:
    """Latency p50 and p99 in ms, of the quietest of a few rounds: what else runs here is not the engine's fault.

    A round that nothing disturbed is the last one.
    """
    for _ in range(WARM_UP_RUNS):
        infer()
    rounds: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - begun < MAX_MEASURING_S):
        taken_ms = np.empty(RUNS)
        for run in range(RUNS):
            start = time.perf_counter()
            infer()
            taken_ms[run] = (time.perf_counter() - start) * 1000
        p50_ms, p99_ms = (float(value) for value in np.percentile(taken_ms, (50, 99)))
        rounds.append((p50_ms, p99_ms))
        if p99_ms <= QUIET_RATIO * p50_ms:
            break
    return min(rounds, key=lambda round_ms: round_ms[1])


def _check_ends(session: Any) -> None:
    for kind, ends, name, shape in (
        ("input", session.get_inputs(), preprocess.INPUT_NAME, preprocess.INPUT_SHAPE),
        ("output", session.get_outputs(), preprocess.OUTPUT_NAME, preprocess.OUTPUT_SHAPE),
    ):
        found = [(end.name, tuple(end.shape), end.type) for end in ends]
        if found != [(name, shape, "tensor(float)")]:
            raise RejectedError(
                f"the model's {kind} is {found}, wanted {name} {shape} float32 (serving/preprocess.py): "
                "export it again with `dvc repro`"
            )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0]}" if names else platform.machine()


BUILDERS: dict[str, Builder] = {"cpu-ort-fp32": build_ort_fp32, "cpu-ort-int8": build_ort_int8}
