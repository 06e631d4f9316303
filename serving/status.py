"""What the daemon says of itself: to whoever asks over the local socket, and in a file for when nobody answers."""

from pathlib import Path
from typing import List, Optional, Tuple

import msgspec

from serving import files, lock
from serving.contracts.events import RobotState, utc_now
from serving.errors import OperatorError

STATUS_FILE = "status.json"


class CaptureStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The images that people label on this robot."""

    session: str = ""  # under way; empty: none
    blocked: int = 0  # images of it
    free: int = 0
    used_mb: float = 0.0  # of all sessions here
    max_mb: float = 0.0
    waiting: List[str] = []  # finished sessions that are not confirmed where they go
    upload: str = ""  # what came of the last attempt


class StatusFile(msgspec.Struct, frozen=True):
    """What the robot does now."""

    state: RobotState
    next_sequence: int
    pid: int
    p_blocked: Optional[float] = None  # of the last decision
    action: str = ""  # forward, left, right, back; what was decided, also while a person holds the robot
    latency_ms: Optional[float] = None
    troubles: List[str] = []  # what does not work as it should, and does not keep it from driving
    capture: Optional[CaptureStatus] = None

    def age_s(self) -> float:
        return (utc_now() - self.state.at).total_seconds()


def read_status(state_dir: Path) -> Tuple[StatusFile, bool]:
    """What the daemon wrote last, and whether it runs.

    Raises:
        OperatorError: no daemon ran here, or its files cannot be read.
    """
    path = state_dir / STATUS_FILE
    try:
        data = files.read_bounded(path, files.MAX_STATE_BYTES)
        return msgspec.json.decode(data, type=StatusFile), lock.is_held(state_dir)
    except FileNotFoundError:
        raise OperatorError(f"{path} is not there: no jetloop-robot ran with this state_dir yet") from None
    except (OSError, ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise OperatorError(f"{path} cannot be read: {problem}") from None
