"""Builds an engine with the TensorRT that this interpreter has: 8.0 to 10, or TensorRT-RTX.

    python build_tensorrt.py ONNX_FILE ENGINE_FILE PRECISION WORKSPACE_MB
    python build_tensorrt.py                            builds nothing, and only says what this machine is

`jetloop-robot build` runs this file by its path, in a process of its own, under `engine.python`: Python 3.6 syntax. The
last line that it prints is JSON, `{"runtime_version": "8.2.1.8", "compute_capability": "5.3"}`. The release service
imports `serialise` to build with TensorRT-RTX. What is built, for whom, and whether it is any good: build.py.
"""

import importlib.util
import json
import os
import sys


class CannotBuild(Exception):
    """TensorRT does not build this network for this machine; with its own words."""


def serialise(trt, logger, errors, onnx, precision, workspace_bytes, capability=""):
    """From an ONNX file to an engine.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        logger: its logger, which appends what goes wrong to `errors`.
        onnx: content of the ONNX file; for int8 and TensorRT-RTX in the precision that is wanted.
        precision: fp32, fp16 or int8.
        workspace_bytes: memory that the builder may try kernels in.
        capability: build for this GPU, such as SM86, which need not be here (TensorRT-RTX alone).

    Returns:
        The content of the engine file.

    Raises:
        CannotBuild: TensorRT refuses; with the reason.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        found = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise CannotBuild("TensorRT cannot read the ONNX file: %s" % _said(found or errors))
    if network.num_outputs == 0:  # what is no ONNX file may parse as an empty one
        raise CannotBuild("the ONNX file holds no network")
    config = builder.create_builder_config()
    if hasattr(config, "set_memory_pool_limit"):  # 8.4 and later
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    else:
        config.max_workspace_size = workspace_bytes
    _set_precision(trt, builder, config, precision)
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise CannotBuild("TensorRT built no engine: %s" % _said(errors))
    return bytes(made)


def _network_flags(trt):
    """8.x needs to be told that the batch is an axis like any other; later versions know nothing else."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0


def _set_precision(trt, builder, config, precision):
    """What is quantised stays so, the rest may run in fp16; strongly typed builders take the file as it is."""
    if precision == "fp32" or not hasattr(trt.BuilderFlag, "FP16"):
        return
    fast_fp16 = getattr(builder, "platform_has_fast_fp16", True)
    if precision == "fp16" and not fast_fp16:
        raise CannotBuild("this GPU has no fast fp16: build for an fp32 target")
    if precision == "int8":
        if not getattr(builder, "platform_has_fast_int8", True):
            raise CannotBuild("this GPU has no int8: build for an fp16 target")
        config.set_flag(trt.BuilderFlag.INT8)
    if fast_fp16:
        config.set_flag(trt.BuilderFlag.FP16)


def _said(errors):
    return "; ".join(" ".join(text.split()) for text in errors[-3:]) or "it says nothing more"


def main(arguments):
    """Builds; returns the exit code: 0 built, 1 refused, 3 nothing can be built here."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location("backend", os.path.join(folder, "engine", "tensorrt_backend.py"))
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    try:
        here = backend.machine()
        if arguments:
            _build(backend, *arguments)
    except ImportError as problem:
        sys.stderr.write("%s\n" % problem)
        return 3
    except CannotBuild as problem:
        sys.stderr.write("%s\n" % problem)
        return 1
    print(json.dumps(here))
    return 0


def _build(backend, onnx_file, engine_file, precision, workspace_mb):
    trt, _ = backend.runtime()
    errors = []  # type: list[str]
    with open(onnx_file, "rb") as file:
        onnx = file.read()
    logger = backend.logger_of(trt, errors)
    engine = serialise(trt, logger, errors, onnx, precision, int(float(workspace_mb) * 1e6))
    with open(engine_file, "wb") as file:
        file.write(engine)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file: its modules are not for import by name
    sys.exit(main(sys.argv[1:]))
