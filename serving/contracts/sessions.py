"""A session: the images that one person took with one robot in one place, as one zip file.

`<id>.zip`, stored not deflated, holds `blocked/*.jpg` and `free/*.jpg` (224x224 RGB JPEG; the label is the folder),
what a Jetbot notebook already makes, plus `session.json`.
"""

from typing import Optional

import msgspec
from typing_extensions import Annotated

from serving.contracts.names import Name

SESSION_FILE = "session.json"
LABELS = ("blocked", "free")


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`session.json`: where the images come from."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    id: Name
    source: Name  # the person or place that an honest evaluation leaves out as a whole
    robot: str = "unknown"
    place: str = "unknown"
    camera: str = "unknown"
    captured_at: Optional[str] = None  # RFC 3339, UTC
    safety_distance_cm: Optional[Annotated[float, msgspec.Meta(gt=0)]] = None
    licence: str = "unknown"
    simulated: bool = False
    seed: Optional[int] = None  # of the simulator, when simulated
