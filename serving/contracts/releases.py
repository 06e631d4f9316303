"""What a release is: targets, the passport of an engine, the channel that says what a ring of robots runs.

All of it travels as signed targets of a TUF repository; the paths below are the target paths in it:

    channels/<channel>.json                        the release that each ring runs
    releases/<release_id>/<target>/passport.json   everything known about one engine
    releases/<release_id>/<target>/engine.<ext>    the engine
    releases/<release_id>/<target>/golden.npz      frames (N, 224, 224, 3) uint8 and logits (N, 2) float32
"""

import hashlib
import re
from typing import Dict, List, Optional, Union

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


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machines that an engine runs on, and what it was made of. Empty: any."""

    board: str  # of the target's name, such as jetson-nano
    compute_capability: str  # of the GPU, such as 5.3
    runtime_version: str  # to the last digit, such as 8.2.1.8
    precision: str
    onnx_sha256: Sha256  # of the file that it was built from


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a robot drives with this engine, as the suite of the stage `simulate` has it; what probation holds it to."""

    blocked_rate_low: Annotated[float, msgspec.Meta(ge=0, le=1)]  # share of decisions that are not `forward`
    blocked_rate_high: Annotated[float, msgspec.Meta(ge=0, le=1)]
    spins_per_min_high: Annotated[float, msgspec.Meta(ge=0)]  # a spin: serving.judge.SPIN_S without one `forward`
    latency_p99_ms: Annotated[float, msgspec.Meta(gt=0)]  # of one inference, as `measured` has it


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    passed: bool
    value: Optional[float] = None
    limit: Optional[float] = None
    detail: str = ""


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A person's signed decision to release a version although it fails a gate."""

    model_name: str
    model_version: str
    onnx_sha256: Sha256
    gate: Name
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    by: Name
    decided_at: str  # RFC 3339, UTC
    signature: str  # base64 of ed25519 over the other fields (pipelines/release/overrides.py)


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
    # Of an engine that was compiled; unset: one that any machine loads.
    engine_key: Union[EngineKey, msgspec.UnsetType] = msgspec.UNSET
    # Left out where there is none, so that robots from before this field read all other passports.
    overrides: Union[List[Override], msgspec.UnsetType] = msgspec.UNSET
    expected: Union[Expected, msgspec.UnsetType] = msgspec.UNSET  # likewise


class ReleaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A release, as a channel names it."""

    release_id: Name
    model_version: str
    passports: Dict[str, str]  # target -> target path of its passport


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a release has come: which robots of the ring take it, and what the others run.

    A robot takes it when `rollout_place(robot, release_id) < share`; so each robot decides by itself, a larger share
    only adds robots, and another release begins with others.
    """

    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    previous: Optional[ReleaseRef] = None  # for the others; None: they keep what they have
    paused: bool = False  # robots that run it keep it, no other takes it


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`channels/<channel>.json`: what the robots of a ring run."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1  # 2: with `rollout` or `withdrawn`
    channel: Name
    sequence: Annotated[int, msgspec.Meta(ge=1)]  # rises with every change, also when it goes back to an older release
    release_id: Name
    model_version: str
    passports: Dict[str, str]  # target -> target path of its passport
    issued_at: str
    rollout: Optional[Rollout] = None  # None: all robots of the ring take it
    withdrawn: Annotated[List[Name], msgspec.Meta(max_length=500)] = []  # release ids that no robot runs again


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


def rollout_place(robot: str, release: str) -> float:
    """Where a robot stands in the rollout of a release: 0 ≤ place < 1, uniform over names, the same everywhere.

    The first 53 bits of SHA-256 over `<release>/<robot>` in UTF-8, as a binary fraction.
    """
    digest = hashlib.sha256(f"{release}/{robot}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / float(1 << 53)


_EXTENSIONS = {"ort": "onnx", "trt": "engine", "trtrtx": "engine"}


def engine_name(target: str) -> str:
    """File name of the engine of a target: `engine.onnx`, `engine.engine`."""
    return f"engine.{_EXTENSIONS[Target.parse(target).runtime]}"
