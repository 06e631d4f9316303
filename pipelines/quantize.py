"""int8 by static quantisation: from the exported ONNX file and some training images to one in QDQ form.

Symmetric S8 for weights (per channel) and activations, biases in float, opset 13: what TensorRT takes. A convolution,
the last layer, a residual addition and a product are quantised at their inputs alone, so that each runs as one int8
operation with the activation after it; the preprocessing, and the first convolutions where they lose too much, stay in
float. A CPU does better with the same network in another form: `for_cpu`. Whether int8 is as good, and quicker, is
measured in int8.py.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving import preprocess

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "HardSigmoid")
MAX_LOGIT_ERROR = 0.5  # over the golden frames: int8.py keeps nothing worse, and the release service releases nothing
_KEEP_VALUES = ("MaxPool", "GlobalAveragePool", "Flatten", "Reshape", "QuantizeLinear", "DequantizeLinear")


def quantise(model: bytes, frames: np.ndarray, float_convolutions: Sequence[int] = (0,)) -> list[bytes]:
    """The network in int8; the same bytes for the same model and frames.

    A tensor's range is the mean, over the frames, of its largest values: one odd image does not widen it for all.

    Args:
        model: ONNX file of the stage `export`.
        frames: (N, 224, 224, 3) uint8 of the training part, to measure the activations' ranges on.
        float_convolutions: for each network wanted: how many of its first convolutions stay in float.
    """
    import onnx

    graph = onnx.load_from_string(model).graph
    preparing = [node.name for node in graph.node if node.op_type != "Constant"]
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    preparing = preparing[: preparing.index(convolutions[0])]
    with tempfile.TemporaryDirectory(prefix="jetloop-int8-") as folder, _quiet():
        return [
            _quantise(model, frames, preparing + convolutions[:count], Path(folder)) for count in float_convolutions
        ]


def _quantise(model: bytes, frames: np.ndarray, left_out: Sequence[str], folder: Path) -> bytes:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        onnx.load_from_string(model),
        folder / "int8.onnx",
        _Frames(frames),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(left_out),
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=folder / "ranges.json",  # of all tensors: read again for the next network
        extra_options={
            "ActivationSymmetric": True,
            "CalibMovingAverage": True,  # the mean over the frames, see ONNX Runtime's MinMaxCalibrater
            "OpTypesToExcludeOutputQuantization": list(QUANTISED),
            "QuantizeBias": False,
            "WeightSymmetric": True,
        },
    )
    quantised = onnx.load(str(folder / "int8.onnx"))
    initializers = sorted(quantised.graph.initializer, key=lambda tensor: tensor.name)
    del quantised.graph.initializer[:], quantised.metadata_props[:]
    quantised.graph.initializer.extend(initializers)  # their order was that of a set
    onnx.checker.check_model(quantised, full_check=True)
    return bytes(quantised.SerializeToString(deterministic=True))


class _Frames:
    """What ONNX Runtime calls a CalibrationDataReader."""

    def __init__(self, frames: np.ndarray) -> None:
        self._left = iter(frames)

    def get_next(self) -> dict[str, np.ndarray] | None:
        frame = next(self._left, None)
        return None if frame is None else {preprocess.INPUT_NAME: frame[None].astype(np.float32)}


def is_int8(model: bytes) -> bool:
    """Whether an ONNX file, which must be one, is quantised."""
    import onnx

    return any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(model).graph.node)


def for_cpu(model: bytes) -> bytes:
    """The same network with unsigned activations, which is what a CPU's int8 kernels take.

    A tensor that follows a ReLU or ReLU6 gets all of 0..255 for what S8 had 0..127 for: half the rounding error, and
    saturation does what the activation did, so that ONNX Runtime drops it. The others are shifted by 128, which
    changes no value.

    Args:
        model: what `quantise` made.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    quantised = onnx.load_from_string(model)
    graph = quantised.graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or constants[node.input[2]].data_type != TensorProto.INT8:
            continue
        scale, zero = (constants[name] for name in node.input[1:3])
        positive = _never_negative(node.input[0], made_by, constants)
        zero.CopyFrom(numpy_helper.from_array(np.array(0 if positive else 128, np.uint8), zero.name))
        if positive:
            finer = numpy_helper.to_array(scale) * np.float32(127 / 255)
            scale.CopyFrom(numpy_helper.from_array(finer.astype(np.float32), scale.name))
    del graph.value_info[:]  # the types of before
    return bytes(quantised.SerializeToString(deterministic=True))


def _never_negative(tensor: str, made_by: dict[str, Any], constants: dict[str, Any]) -> bool:
    """Whether a tensor comes from a ReLU or ReLU6, also through what only moves or averages values."""
    from onnx import numpy_helper

    node = made_by.get(tensor)
    while node is not None and node.op_type in _KEEP_VALUES:
        node = made_by.get(node.input[0])
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type == "Relu"
    lowest = node.input[1]
    found = constants[lowest] if lowest in constants else made_by[lowest].attribute[0].t
    return bool(numpy_helper.to_array(found) >= 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser prints, and warns through the root logger of what was decided here on purpose."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
