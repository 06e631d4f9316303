"""`current.json`: which slot runs, which ran before, and how far the probation of the one that runs has come.

One sealed file (files.py), replaced in one rename, so that a new engine and its probation begin in the same instant.
"""

from pathlib import Path
from typing import Literal, Optional

import msgspec
from typing_extensions import Annotated

from serving import files
from serving.contracts.names import Sha256
from serving.contracts.releases import Channel
from serving.errors import OperatorError

SlotName = Literal["a", "b"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A slot that was committed."""

    slot: SlotName
    passport_sha256: Sha256
    channel: Channel  # the channel file that brought it


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the probation of an engine has come."""

    driven_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    starts: Annotated[int, msgspec.Meta(ge=0)] = 0  # of the daemon with this engine that did not end as they should


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The content of the file."""

    current: Record
    previous: Optional[Record] = None
    probation: Optional[Progress] = None  # of `current`; None when it passed, or never had one


def read(path: Path) -> Optional[Pointer]:
    """None where there is none, and (with a line in the log) where it is damaged."""
    return files.read_sealed(path, Pointer)


def write(path: Path, pointer: Pointer) -> None:
    """Replaces the file as a whole.

    Raises:
        OperatorError: the disk failed; the old content is still there.
    """
    try:
        files.write_sealed(path, pointer)
    except OSError as problem:
        raise OperatorError(f"{path}: {problem.strerror}; check the disk") from None
