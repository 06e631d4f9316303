"""One engine on its way from the thread that loaded it to the control thread, which takes it between two frames."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from serving.engine.client import EngineFailed
from serving.engine.loading import Loaded

_TAKE_TIMEOUT_S = 5.0  # the control thread asks several times a second
_FIRST_DECISION_TIMEOUT_S = 5.0  # a camera that is gone must not hold up the update for ever
_LOOK_EVERY_S = 0.05


@dataclass(eq=False)
class Handover:
    """What the two threads know of it."""

    loaded: Loaded
    previous: Optional[Loaded] = None
    gap_ms: Optional[float] = None  # from the last decision of the one to the first of the other
    failure: Optional[EngineFailed] = None
    taken: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)  # decided, or failed

    def wait_taken(self, closing: threading.Event) -> None:
        """Until the control thread took it, the daemon ends, or too long."""
        _wait(self.taken, _TAKE_TIMEOUT_S, closing)

    def wait_settled(self, closing: threading.Event) -> bool:
        """Until it decided or failed; False when the daemon ends, or no frame comes to decide on."""
        return _wait(self.settled, _FIRST_DECISION_TIMEOUT_S, closing)

    def told(self, previous_release: str, cause: str) -> Dict[str, Any]:
        """The data of the event `model.activated`."""
        return {
            "from": previous_release,
            "to": self.loaded.passport.release_id,
            "cause": cause,
            "gap_ms": self.gap_ms,
            "parity_max_abs": self.loaded.checked.parity_max_abs,
            "latency_p50_ms": self.loaded.checked.latency_p50_ms,
            "latency_p99_ms": self.loaded.checked.latency_p99_ms,
            "runtime": self.loaded.engine.runtime,
        }


def _wait(event: threading.Event, timeout_s: float, closing: threading.Event) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not event.wait(_LOOK_EVERY_S):
        if closing.is_set() or time.monotonic() > deadline_s:
            return event.is_set()
    return True
