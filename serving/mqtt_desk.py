"""What the robot's other threads leave for the link's thread: the newest state, who waits for wake-ups, the order to
end."""

import contextlib
import socket
import threading
from typing import Callable, List, NamedTuple, Optional, Tuple

from serving.contracts.events import RobotState, utc_now


class Who(NamedTuple):
    """The robot that speaks."""

    site: str
    robot: str
    session: str
    ring: str

    def offline(self, reason: str) -> RobotState:
        return RobotState(
            site=self.site,
            robot=self.robot,
            session=self.session,
            online=False,
            at=utc_now(),
            mode="offline",
            reason=reason,
            ring=self.ring,
        )


class Desk:
    """What other threads want of the connection; it outlives connections."""

    def __init__(self) -> None:
        self.state: Optional[RobotState] = None  # the newest
        self.state_changed = False
        self.listeners: List[Tuple[str, Callable[[], None]]] = []  # channel, and whom its wake-up is for
        self.stopping = threading.Event()
        self.give_up_at = float("inf")  # time.monotonic()
        self.wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    def tell(self, state: RobotState) -> None:
        self.state = state
        self.state_changed = True
        self.wake()

    def end(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at
        self.stopping.set()
        self.wake()

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            self._wake_write.send(b"w")
