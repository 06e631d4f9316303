"""A network for a robot that says the same of every frame: the smallest that can drive, well or badly."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from serving import preprocess

BLOCKED, FREE = (4.0, -4.0), (-4.0, 4.0)


def constant_network(path: Path, logits: tuple[float, float]) -> Path:
    """Writes the ONNX file; the frame counts for nothing, but is read."""
    weights = np.zeros((3, 2), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [preprocess.INPUT_NAME], ["mean"], axes=[1, 2], keepdims=0),  # (1, 3)
            helper.make_node("MatMul", ["mean", "weights"], ["nothing"]),
            helper.make_node("Add", ["nothing", "logits_said"], [preprocess.OUTPUT_NAME]),
        ],
        "constant",
        [helper.make_tensor_value_info(preprocess.INPUT_NAME, TensorProto.FLOAT, preprocess.INPUT_SHAPE)],
        [helper.make_tensor_value_info(preprocess.OUTPUT_NAME, TensorProto.FLOAT, preprocess.OUTPUT_SHAPE)],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, (3, 2), weights.tobytes(), raw=True),
            helper.make_tensor("logits_said", TensorProto.FLOAT, (1, 2), list(logits)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
