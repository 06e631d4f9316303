"""What can be asked of a running daemon, and its answers: JSON, one line each, over the local socket or the page."""

from typing import Any, Dict, Literal, Optional, Union

import msgspec
from msgspec import Meta
from typing_extensions import Annotated

from serving.errors import RejectedError
from serving.status import StatusFile

MAX_REQUEST_BYTES = 4096  # a line, with its end
MAX_ANSWER_BYTES = 64 * 1024

Text = Annotated[str, Meta(max_length=500)]


class GetStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="status"):
    """What the robot does."""


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="stop"):
    """Motors to zero until `resume`, also after a restart."""

    text: Text = ""  # why, for the log and the event
    planned: bool = False  # true: the engine is not to blame


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="resume"):
    """Drive again."""


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="rollback"):
    """Back to the engine before."""

    text: Text = ""


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="label"):
    """The next frame is an image of this class."""

    label: Literal["blocked", "free"]


class CaptureBegin(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="capture-begin"
):
    """A session of labelled images begins."""

    place: Text = ""  # empty, 0: as robot.toml says
    safety_distance_cm: Annotated[float, Meta(ge=0, le=1000)] = 0.0


class CaptureFinish(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="capture-finish"
):
    """The session becomes a zip, and is uploaded."""


class CaptureDiscard(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="do", tag="capture-discard"
):
    """The session is deleted."""


Request = Union[GetStatus, Stop, Resume, Rollback, Label, CaptureBegin, CaptureFinish, CaptureDiscard]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request."""

    ok: bool
    said: str = ""  # one line for people
    status: Optional[StatusFile] = None


_decoder: "msgspec.json.Decoder[Request]" = msgspec.json.Decoder(Request)


def parse(line: bytes) -> Request:
    """Reads one request.

    Raises:
        RejectedError: it is too long, no JSON, or asks for what there is not.
    """
    if len(line) > MAX_REQUEST_BYTES:
        raise RejectedError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        return _decoder.decode(line)
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise RejectedError(f"this is no request: {problem}") from None


def encode(message: Union[Request, Answer]) -> bytes:
    """A line, with its end."""
    return msgspec.json.encode(message) + b"\n"


def to_plain(status: StatusFile) -> Dict[str, Any]:
    """As JSON has it, for people's scripts: the state's fields beside the others."""
    plain: Dict[str, Any] = msgspec.to_builtins(status)
    return {**plain.pop("state"), **plain}
