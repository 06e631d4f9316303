"""What waits for the broker: a bounded queue on disk that survives kill -9 and power failure.

It stores finished messages and hands them out oldest first; what they say is the reporter's part, sending them the
link's, the file outbox_file.py's. Bounded by bytes and by age: metrics are dropped oldest first, and only when there
are none left, events. What was dropped is counted on the disk too, so that the reporter can tell.
"""

import time
from pathlib import Path
from typing import Callable, Iterable, List, NamedTuple, Sequence

from serving.outbox_file import COST, ROW_BYTES, Ledger, OutboxFile

EVENT = "event"
METRICS = "metrics"
_ROOM_SHARE = 0.75  # fuller than this, a report of what was dropped would only be dropped itself
_EXPIRE_ROWS = 200  # a transaction, so that nobody waits long for the file
_EXPIRE_EVERY_S = 60.0


class Draft(NamedTuple):
    """A message that lacks only its sequence number."""

    kind: str  # EVENT or METRICS
    topic: str
    encode: Callable[[int], bytes]  # sequence number -> payload


class Message(NamedTuple):
    """A stored message."""

    id: int  # rises; never used twice
    kind: str
    topic: str
    payload: bytes


class Dropped(NamedTuple):
    """How many messages were dropped and not yet told of."""

    metrics: int = 0
    events: int = 0


NOTHING = Dropped()


class Outbox:
    """The queue in one SQLite file; any thread may call any method.

    Args:
        path: of the database; made if it is missing, put aside and begun anew if it is damaged.
        max_bytes: of payloads, topics and rows together. The file itself may be a fifth larger.
        max_age_s: how long a message waits, counted while an outbox is open: neither a clock that jumps nor a robot
            that is switched off for a month drops anything.

    Raises:
        OperatorError: the file cannot be opened or made.
    """

    def __init__(self, path: Path, max_bytes: int, max_age_s: float = float("inf")) -> None:
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.on_put: Callable[[], None] = lambda: None  # called after each commit of new messages: the link's wake-up
        self._file = OutboxFile(path)
        self._expire_at_s = 0.0  # time.monotonic()

    def put(self, drafts: Sequence[Draft], lost: Dropped = NOTHING) -> None:
        """Stores messages in their order, all or none, and returns once they are on the disk.

        Args:
            drafts: each gets the next sequence number.
            lost: messages that never came this far; counted with what is dropped here.

        Raises:
            OperatorError: the disk is full or failed; nothing was stored.
        """
        with self._file.transaction() as ledger:
            ledger.dropped_metrics += lost.metrics
            ledger.dropped_events += lost.events
            for draft in drafts:
                self._store(draft, ledger)
        self.on_put()

    def report_dropped(self, draft: Callable[[Dropped], Draft]) -> bool:
        """Puts one message that tells what was dropped, once there is room for it, and counts from zero again.

        Raises:
            OperatorError: the disk is full or failed; nothing was stored.
        """
        if not any(self.dropped()) or self._file.ledger.bytes > self.max_bytes * _ROOM_SHARE:
            return False
        with self._file.transaction() as ledger:
            dropped = Dropped(ledger.dropped_metrics, ledger.dropped_events)
            ledger.dropped_metrics = ledger.dropped_events = 0
            self._store(draft(dropped), ledger)
        self.on_put()
        return True

    def expire(self) -> int:
        """Drops and counts messages older than `max_age_s`, a few at a time; looks once a minute, costs nothing else.

        Returns:
            How many were dropped.

        Raises:
            OperatorError: the disk failed.
        """
        now_s = time.monotonic()
        if now_s < self._expire_at_s or not self.depth():
            return 0
        before_s = self._file.clock_s() - self.max_age_s
        with self._file.transaction() as ledger:
            oldest = self._file.execute("SELECT id, kind, created FROM messages ORDER BY id LIMIT ?", (_EXPIRE_ROWS,))
            old = [(one, kind) for one, kind, created in oldest if created < before_s]
            for one, kind in old:
                self._delete("id = ?", (one,), ledger)
                _count_dropped(kind, ledger)
        if len(old) < _EXPIRE_ROWS:
            self._expire_at_s = now_s + _EXPIRE_EVERY_S
        return len(old)

    def batch(self, n: int, after: int = 0) -> List[Message]:
        """The oldest `n` messages whose id is above `after`, oldest first. They stay stored until `done`.

        Raises:
            OperatorError: the disk failed.
        """
        query = "SELECT id, kind, topic, payload FROM messages WHERE id > ? ORDER BY id LIMIT ?"
        with self._file.reading():
            return [Message(*row) for row in self._file.execute(query, (after, n))]

    def done(self, ids: Iterable[int]) -> None:
        """Forgets messages that the broker has acknowledged; ids that are not there any more are passed over.

        Raises:
            OperatorError: the disk failed; they will be sent again.
        """
        with self._file.transaction() as ledger:
            for one in ids:
                self._delete("id = ?", (one,), ledger)

    def depth(self) -> int:
        """How many messages wait; never waits for the disk."""
        return self._file.ledger.depth

    def dropped(self) -> Dropped:
        """What was dropped and not yet told of; never waits for the disk."""
        ledger = self._file.ledger
        return Dropped(ledger.dropped_metrics, ledger.dropped_events)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next message gets; never used twice, also not after a crash."""
        return self._file.ledger.sequence + 1

    def close(self) -> None:
        self._file.close()

    def _store(self, draft: Draft, ledger: Ledger) -> None:
        ledger.sequence += 1
        payload = draft.encode(ledger.sequence)
        cost = len(payload) + len(draft.topic.encode()) + ROW_BYTES
        while ledger.bytes + cost > self.max_bytes and self._delete_oldest(METRICS, ledger):
            _count_dropped(METRICS, ledger)
        while draft.kind == EVENT and ledger.bytes + cost > self.max_bytes and self._delete_oldest(EVENT, ledger):
            _count_dropped(EVENT, ledger)
        if ledger.bytes + cost > self.max_bytes:  # metrics in an outbox full of events; an event larger than the outbox
            _count_dropped(draft.kind, ledger)
            return
        self._file.execute(
            "INSERT INTO messages (kind, topic, payload, created) VALUES (?, ?, ?, ?)",
            (draft.kind, draft.topic, payload, self._file.clock_s()),
        )
        ledger.depth += 1
        ledger.bytes += cost

    def _delete_oldest(self, kind: str, ledger: Ledger) -> bool:
        return self._delete("id = (SELECT MIN(id) FROM messages WHERE kind = ?)", (kind,), ledger)

    def _delete(self, where: str, values: Sequence[object], ledger: Ledger) -> bool:
        gone = self._file.execute(f"DELETE FROM messages WHERE {where} RETURNING {COST}", values)
        ledger.depth -= len(gone)
        ledger.bytes -= sum(cost for (cost,) in gone)
        return bool(gone)


def _count_dropped(kind: str, ledger: Ledger) -> None:
    if kind == METRICS:
        ledger.dropped_metrics += 1
    else:
        ledger.dropped_events += 1
