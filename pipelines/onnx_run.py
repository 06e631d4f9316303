"""Runs ONNX files as a robot without a GPU does, to compare their answers and their time."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving import preprocess
from training.pack_file import Pixels

WARM_UP_RUNS = 3


def session(model: bytes) -> Any:
    """ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def logits_of_onnx(model: bytes, frames: Pixels) -> np.ndarray:
    """(N, 2) float32 by ONNX Runtime, fed as on the robot.

    Args:
        frames: (N, 224, 224, 3) uint8.
    """
    loaded = session(model)
    batch = np.empty(preprocess.INPUT_SHAPE, dtype=np.float32)
    answers = []
    for frame in (frames[index] for index in range(len(frames))):
        preprocess.into(frame, batch)  # type: ignore[no-untyped-call]
        answers.append(loaded.run([preprocess.OUTPUT_NAME], {preprocess.INPUT_NAME: batch})[0][0])
    return np.asarray(answers, dtype=np.float32)


def latencies_ms(models: Sequence[bytes], rounds: int = 40) -> np.ndarray:
    """(models, rounds) ms of one inference, the networks in turns, so that a busy moment meets them all."""
    loaded = [session(model) for model in models]
    feed = {preprocess.INPUT_NAME: np.full(preprocess.INPUT_SHAPE, 127, dtype=np.float32)}
    taken_ms = np.empty((len(models), WARM_UP_RUNS + rounds))
    for turn in range(WARM_UP_RUNS + rounds):
        for index, one in enumerate(loaded):
            start = time.perf_counter()
            one.run(None, feed)
            taken_ms[index, turn] = (time.perf_counter() - start) * 1e3
    return taken_ms[:, WARM_UP_RUNS:]
