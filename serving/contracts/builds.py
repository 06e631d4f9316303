"""What the release service asks a robot to build, and what the robot hands back.

The order is a signed target of the repository, `releases/<release_id>/<target>/order.json`, beside what it names:
`model.onnx`, `golden.npz`, and `prebuilt.engine` where only the measuring is left. The report travels over HTTP,
signed with the builder's own ed25519 key; it names the digest of the engine that comes with it. Python 3.8 syntax.
"""

import base64
from typing import List, Optional

import msgspec
from typing_extensions import Annotated

from serving.contracts.names import Name, Sha256
from serving.contracts.releases import EngineFile, EngineKey, Measured

ORDER_FILE, ONNX_FILE, PREBUILT_FILE = "order.json", "model.onnx", "prebuilt.engine"
MAX_ORDER_BYTES = 16 * 1024
MAX_REPORT_BYTES = 16 * 1024
MAX_ONNX_BYTES = 512 << 20
MAX_ENGINE_BYTES = 512 << 20

BUILDS_PATH = "/api/builds"
BUILDER_HEADER, REPORT_HEADER, SIGNATURE_HEADER = "Jetloop-Builder", "Jetloop-Report", "Jetloop-Signature"
_PREFIX = b"jetloop build report\n"  # what is signed here is signed for nothing else


class BuildOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`order.json`: build this for that target."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    release_id: Name
    target: Name
    preprocessing: str
    opset: Annotated[int, msgspec.Meta(ge=1)]
    onnx: EngineFile
    golden: EngineFile
    prebuilt: Optional[EngineFile] = None  # an engine that only has to be measured


class BuildReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a builder says of the engine that it made."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    release_id: Name
    target: Name
    builder: Name
    engine_sha256: Sha256
    engine_bytes: Annotated[int, msgspec.Meta(gt=0, le=MAX_ENGINE_BYTES)]
    golden_sha256: Sha256  # of the frames that it was measured with
    key: EngineKey
    measured: Measured
    built_at: str  # RFC 3339, UTC


class OpenBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `GET /api/builds`: never trusted, only where to look in the signed repository."""

    release_id: Name
    target: Name
    builder: str = ""  # who built it; empty: nobody yet


OpenBuilds = List[OpenBuild]


def signed_content(report: bytes) -> bytes:
    """What a builder's key signs: the report as it travels, marked as one."""
    return _PREFIX + report


def to_header(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def from_header(text: str) -> bytes:
    """Raises ValueError: it is not base64."""
    return base64.b64decode(text, validate=True)
