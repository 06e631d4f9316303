"""What a release is: targets, the passport of an engine, the channel that says what a ring of robots runs.

All of it travels as signed targets of a TUF repository; the paths below are the target paths in it:

    channels/<channel>.json                        the release that each ring runs
    releases/<release_id>/<target>/passport.json   everything known about one engine
    releases/<release_id>/<target>/engine.<ext>    the engine
    releases/<release_id>/<target>/golden.npz      frames (N, 224, 224, 3) uint8 and logits (N, 2) float32
"""

import re
from typing import Dict, List, Optional

import msgspec
from typing_extensions import Annotated

from serving.contracts.names import Name, Sha256
from serving.errors import RejectedError

MODEL_NAME = "collision-avoidance"
CHANNELS = ("champion", "canary")

# <board>-<runtime><version>-<precision>, such as jetson-nano-trt8.2-fp16 or cpu-ort-fp32
_TARGET = re.compile(
    r"^(?P<board>[a-z0-9-]+?)-(?P<runtime>ort|trtrtx|trt)(?P<version>[0-9.]*)-(?P<precision>fp32|fp16|int8)$"
)


class Target(msgspec.Struct, frozen=True):
    """The one kind of machine that an engine belongs to."""

    board: str
    runtime: str  # ort, trt, trtrtx
    runtime_version: str  # empty where any version loads the engine
    precision: str

    @classmethod
    def parse(cls, name: str) -> "Target":
        """Reads a target's name.

        Raises:
            RejectedError: it is not `<board>-<runtime><version>-<precision>`.
        """
        found = _TARGET.match(name)
        if not found:
            raise RejectedError(
                f"target `{name}` is not <board>-<runtime><version>-<precision>, "
                "such as cpu-ort-fp32 or jetson-nano-trt8.2-fp16"
            )
        return cls(found["board"], found["runtime"], found["version"], found["precision"])


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: str  # target path in the repository
    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(gt=0)]


class GoldenFrames(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frames and the logits that the trained network gave for them, before any conversion."""

    path: str
    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(gt=0)]
    count: Annotated[int, msgspec.Meta(ge=1)]
    tolerance: Annotated[float, msgspec.Meta(gt=0)]  # largest absolute difference of a logit that still passes


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From logits to `blocked`: softmax(logits / temperature)[0] >= blocked_threshold."""

    blocked_threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the builder measured with the engine itself."""

    parity_max_abs: Annotated[float, msgspec.Meta(ge=0)]  # of a logit, over the golden frames
    latency_p50_ms: Annotated[float, msgspec.Meta(gt=0)]
    latency_p99_ms: Annotated[float, msgspec.Meta(gt=0)]
    machine: str


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    passed: bool
    value: Optional[float] = None
    limit: Optional[float] = None
    detail: str = ""


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What leads from an engine back to the images."""

    model_name: str
    model_version: str
    run_id: str
    git_commit: str
    git_dirty: bool
    data: Dict[str, str]  # path -> DVC's hash, such as data/sessions -> 1a2b….dir
    onnx_sha256: Sha256


class Passport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything known about one engine. A robot runs no engine whose passport does not fit it."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    release_id: Name
    target: Name
    preprocessing: str
    engine: EngineFile
    golden: GoldenFrames
    decision: Decision
    measured: Measured
    gates: List[GateResult]
    lineage: Lineage
    approver: str
    approved_at: str  # RFC 3339, UTC: when the alias was seen on this version
    built_at: str


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`channels/<channel>.json`: what the robots of a ring run."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    channel: Name
    sequence: Annotated[int, msgspec.Meta(ge=1)]  # rises with every change, also when it goes back to an older release
    release_id: Name
    model_version: str
    passports: Dict[str, str]  # target -> target path of its passport
    issued_at: str


class Wakeup(msgspec.Struct, frozen=True, kw_only=True):
    """Retained MQTT message on `jetloop/v1/releases/<channel>`: look now. Never trusted."""

    release_id: str
    sequence: int


class ExportReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`export.json`, beside the ONNX file in the MLflow run: what the release service starts from."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    onnx_sha256: Sha256
    onnx_bytes: Annotated[int, msgspec.Meta(gt=0)]
    opset: int
    preprocessing: str
    backbone: str
    parity_max_abs: float  # ONNX Runtime against torch, over the golden frames
    golden_sha256: Sha256
    golden_count: int
    decision: Decision


def release_id(model_version: str, onnx_sha256: str) -> str:
    """The release's name: the version a person sees in MLflow and the start of the model's digest."""
    return f"{MODEL_NAME}-v{model_version}-{onnx_sha256[:8]}"


def channel_path(channel: str) -> str:
    return f"channels/{channel}.json"


def file_path(release: str, target: str, name: str) -> str:
    """Target path of `passport.json`, `golden.npz` or the engine."""
    return f"releases/{release}/{target}/{name}"


_EXTENSIONS = {"ort": "onnx", "trt": "engine", "trtrtx": "engine"}


def engine_name(target: str) -> str:
    """File name of the engine of a target: `engine.onnx`, `engine.engine`."""
    return f"engine.{_EXTENSIONS[Target.parse(target).runtime]}"
