"""Engines for PCs with a GPU of the RTX family: TensorRT-RTX builds them on any machine, without a GPU.

It takes the types of the ONNX file and no others, so fp16 is made there first. Loading an engine needs a GPU: parity
and latency are measured by a robot that has one (builds.py).
"""

import logging

from serving import build_tensorrt
from serving.contracts.releases import Target
from serving.contracts.targets import TargetKind
from serving.engine import tensorrt_backend
from serving.errors import OperatorError, RejectedError

log = logging.getLogger(__name__)

WORKSPACE_BYTES = 256 << 20


def runtime_version(target: str) -> str:
    """Version of TensorRT-RTX here, to the last digit.

    Raises:
        OperatorError: it is not installed, or not the version that the target names.
    """
    try:
        import tensorrt_rtx
    except ImportError:
        raise OperatorError(
            f"{target} needs TensorRT-RTX where the release service runs: `pip install tensorrt-rtx`"
        ) from None
    found = str(tensorrt_rtx.__version__)
    wanted = Target.parse(target).runtime_version
    if not f"{found}.".startswith(f"{wanted}."):
        raise OperatorError(
            f"{target} needs TensorRT-RTX {wanted}, {found} is installed: `pip install 'tensorrt-rtx=={wanted}.*'`"
        )
    return found


def build_rtx(kind: TargetKind, onnx: bytes) -> bytes:
    """Builds an engine for the GPUs of a target.

    Args:
        onnx: the file of the target's precision: fp32, or int8 in QDQ form; fp16 is made from fp32.

    Raises:
        OperatorError: no TensorRT-RTX of that version is here.
        RejectedError: it does not build this network; with its own words.
    """
    runtime_version(kind.name)
    import tensorrt_rtx as trt

    errors: list[str] = []
    logger = tensorrt_backend.logger_of(trt, errors)  # type: ignore[no-untyped-call]
    model = halved(onnx) if kind.precision == "fp16" else onnx
    capability = f"SM{kind.compute_capability.replace('.', '')}"
    try:
        engine = build_tensorrt.serialise(trt, logger, errors, model, kind.precision, WORKSPACE_BYTES, capability)  # type: ignore[no-untyped-call]
    except build_tensorrt.CannotBuild as problem:
        raise RejectedError(f"{kind.name}: {problem}: export it again with `dvc repro`") from None
    log.info("built for %s with TensorRT-RTX %s, not measured: %d bytes", kind.name, trt.__version__, len(engine))
    return bytes(engine)


def halved(onnx: bytes) -> bytes:
    """The same network in fp16, but for its input and output.

    Raises:
        RejectedError: this is no ONNX file.
    """
    from google.protobuf.message import DecodeError
    from onnx import load_from_string
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        model = load_from_string(onnx)
    except DecodeError as problem:
        raise RejectedError(f"the model is no ONNX file ({problem}): export it again with `dvc repro`") from None
    return bytes(convert_float_to_float16(model, keep_io_types=True).SerializeToString())
