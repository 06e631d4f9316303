"""The kinds of machine that releases are built for: one row a target, known to the robots and to the release service.

A name of a row may be made more exact by a longer version: jetson-nano-trt8.2.1-fp16 is a target of its own, and the
row of jetson-nano-trt8.2-fp16 describes it. Python 3.8 syntax.
"""

from typing import List, NamedTuple

from serving.contracts.releases import Target
from serving.errors import OperatorError

HERE, DEVICE, MEASURED = "here", "on the device", "here, measured on the device"


class TargetKind(NamedTuple):
    """What one kind of machine takes."""

    name: str
    board: str  # for people
    says: str  # part of what the board calls itself in /proc/device-tree/model; empty: any machine
    compute_capability: str  # of its GPU; empty: it has none
    max_opset: int  # of the ONNX file
    memory_mb: int  # of the board, shared with the GPU on a Jetson; 0: as much as it has
    built: str  # where its engines come from: HERE, DEVICE or MEASURED

    @property
    def precision(self) -> str:
        return Target.parse(self.name).precision


# Opsets: TensorRT's support matrices. Compute capabilities: NVIDIA's list of its GPUs. A Jetson Nano has no int8.
_JETSONS = [
    TargetKind("jetson-nano-trt8.2-fp32", "Jetson Nano, JetPack 4.6", "Jetson Nano", "5.3", 13, 4096, DEVICE),
    TargetKind("jetson-nano-trt8.2-fp16", "Jetson Nano, JetPack 4.6", "Jetson Nano", "5.3", 13, 4096, DEVICE),
    TargetKind("xavier-nx-trt8.5-fp32", "Xavier NX, JetPack 5.1", "Xavier NX", "7.2", 17, 8192, DEVICE),
    TargetKind("xavier-nx-trt8.5-fp16", "Xavier NX, JetPack 5.1", "Xavier NX", "7.2", 17, 8192, DEVICE),
    TargetKind("xavier-nx-trt8.5-int8", "Xavier NX, JetPack 5.1", "Xavier NX", "7.2", 17, 8192, DEVICE),
]
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # what TensorRT-RTX 1.7 builds for
_RTX = [
    TargetKind(f"rtx-sm{sm.replace('.', '')}-trtrtx1.7-{precision}", f"PC, GPU SM {sm}", "", sm, 17, 0, MEASURED)
    for sm in _RTX_CAPABILITIES
    for precision in ("fp32", "fp16", "int8")
]
_ORT = [
    TargetKind("cpu-ort-fp32", "any machine", "", "", 17, 0, HERE),
    TargetKind("cpu-ort-int8", "any machine", "", "", 17, 0, HERE),
    # Nothing is compiled there; what counts is that parity and latency were measured where the engine runs.
    TargetKind("board-ort-fp32", "any board, measured on it", "", "", 17, 0, DEVICE),
]
TARGETS: List[TargetKind] = [*_ORT, *_JETSONS, *_RTX]


def kind_of(target: str) -> TargetKind:
    """The row of a target.

    Raises:
        RejectedError: this is no name of a target.
        OperatorError: there is no such row.
    """
    wanted = Target.parse(target)
    for kind in TARGETS:
        row = Target.parse(kind.name)
        exact = f"{wanted.runtime_version}.".startswith(f"{row.runtime_version}.") or not row.runtime_version
        if (row.board, row.runtime, row.precision) == (wanted.board, wanted.runtime, wanted.precision) and exact:
            return kind._replace(name=target)
    raise OperatorError(f"there is no target `{target}`: `jetloop release targets` lists them")
