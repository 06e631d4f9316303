"""TensorRT-RTX parses all networks and builds engines of them, without a GPU: fp32, fp16 and int8, for SM86.

`pip install tensorrt-rtx` (228 MB) into the environment that runs this. The Jetsons' own TensorRT is an older one and
takes less; what it takes is held by test_export.py (opset 13, no wide integers) and test_quantize.py.
"""

from typing import Any

import numpy as np
import pytest

trt: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: `pip install tensorrt-rtx`")
torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from pipelines.export import to_onnx  # noqa: E402
from pipelines.quantize import quantise  # noqa: E402
from training.model import BACKBONES, Network  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


def build(model: bytes) -> int:
    """Bytes of the engine for an Ampere GPU of the RTX family."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


def halved(model: bytes) -> bytes:
    """In fp16 but for its input and output: TensorRT-RTX takes the types of the ONNX file and no others."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_network_becomes_an_engine(backbone: str) -> None:
    """In three precisions; the smaller the number, the smaller the engine of a large network."""
    torch.manual_seed(0)
    model = to_onnx(Network(backbone).eval())
    fp32, fp16, int8 = build(model), build(halved(model)), build(quantise(model, FRAMES)[0])
    assert fp16 < fp32
    if backbone in ("resnet18", "alexnet"):  # in small ones the kernels, of which int8 has more, outweigh the weights
        assert int8 < fp16
