"""What the broker acknowledged, kept until the broker had time to write it to its own disk; and how fast is sent.

Brokers answer before they save: a Mosquitto that is killed loses what it acknowledged since its last save (measured:
about one message a kill with `autosave_on_changes`, seconds of them without). So an event leaves the outbox some
seconds after its acknowledgement. When a connection breaks before that, it is sent again on the next one, with the same
id, which the store leaves out if it has it; up to five times, for a line that breaks every second must come to an end.
"""

import collections
import time
from typing import Deque, Dict, List, Tuple

from serving.errors import OperatorError
from serving.outbox import Outbox

_FORGET_EVERY_S = 0.2  # settled messages are deleted together, a transaction each time
_MOST_ACKNOWLEDGEMENTS = 5  # of one message: then it is believed, whatever happens to the connection
_SLOT_S = 0.05


class Settling:
    """Acknowledged messages on their way out of the outbox. Used by the link's thread alone.

    Args:
        outbox: what they are deleted from.
        settle_s: from the acknowledgement to the deletion.
    """

    def __init__(self, outbox: Outbox, settle_s: float) -> None:
        self._outbox = outbox
        self._settle_s = settle_s
        self._waiting: Deque[Tuple[float, int]] = collections.deque()  # (acknowledged at, id in the outbox)
        self._unsettled: Dict[int, int] = {}  # id -> how many connections ended after they acknowledged it
        self._settled: List[int] = []
        self._forget_at_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._settled)

    def acknowledged(self, outbox_id: int) -> None:
        if self._unsettled.get(outbox_id, 0) + 1 >= _MOST_ACKNOWLEDGEMENTS:
            self._settled.append(outbox_id)
        else:
            self._waiting.append((time.monotonic(), outbox_id))

    def forget_settled(self) -> None:
        """Deletes what has settled, a few times a second.

        Raises:
            OperatorError: the disk failed; it is tried again.
        """
        now_s = time.monotonic()
        self._settle(now_s)
        if self._settled and now_s >= self._forget_at_s:
            self._forget_at_s = now_s + _FORGET_EVERY_S
            self._forget()

    def connection_ended(self) -> None:
        """What has not settled is to be sent again, after a goodbye too: broker and robot may be switched off together.

        Raises:
            OperatorError: the disk failed; what has settled will be sent again too.
        """
        self._settle(time.monotonic())
        for _, outbox_id in self._waiting:
            self._unsettled[outbox_id] = self._unsettled.get(outbox_id, 0) + 1
        self._waiting.clear()
        self._forget()

    def _settle(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] + self._settle_s <= now_s:
            self._settled.append(self._waiting.popleft()[1])

    def _forget(self) -> None:
        if not self._settled:
            return
        ids, self._settled = self._settled, []
        try:
            self._outbox.done(ids)
        except OperatorError:
            self._settled = ids
            raise
        for outbox_id in ids:
            self._unsettled.pop(outbox_id, None)


class Pace:
    """At most so many a second: what waited for days must not keep the processor from deciding.

    They go a twentieth of a second's share at a time. One by one they would cost four times the processor time, waking
    the thread for each.
    """

    def __init__(self, per_s: float) -> None:
        self._slot_s = max(_SLOT_S, 1.0 / per_s)
        self._share = max(1, int(per_s * self._slot_s))
        self._left = 0
        self._slot_ends_s = 0.0  # time.monotonic()

    def wait_s(self) -> float:
        """How long until the next one may go; 0: now."""
        now_s = time.monotonic()
        if now_s >= self._slot_ends_s:
            self._left, self._slot_ends_s = self._share, now_s + self._slot_s
        return 0.0 if self._left else self._slot_ends_s - now_s

    def took_one(self) -> None:
        self._left -= 1
