"""Batches for the store: the part of the collector that is the same whether messages come by MQTT or by Kafka.

A message is settled once the commit that holds it is done, and only then forgotten where it came from. Between the two
a crash brings it again, and the store leaves out what it has.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from serving.contracts.events import Event
from serving.errors import OperatorError, RejectedError
from telemetry.messages import parse
from telemetry.metrics import CollectorMetrics
from telemetry.mqtt_inlet import Received
from telemetry.store import Batch, Rejected, Store

log = logging.getLogger("jetloop.collector")

BATCH_MESSAGES = 1000  # a batch is committed when it holds this many,
BATCH_S = 0.05  # or when its first message has waited this long,
QUIET_S = 0.002  # or when nothing more came for this long
IDLE_S = 0.25  # how often a collector with nothing to do looks whether it should end
STATUS_S = 30.0  # between two status lines
REJECTIONS_LOGGED = 5  # in full, between two status lines; all are in the store


@dataclass
class Counts:
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        return f"stored {self.stored}, duplicates {self.duplicates}, rejected {self.rejected}"


class Intake:
    """Parses messages into a batch, and commits it."""

    def __init__(self, store: Store, metrics: CollectorMetrics | None = None) -> None:
        self.counts = Counts()
        self._metrics = metrics
        self._store = store
        self._batch = Batch()
        self._status = ("", time.monotonic())
        self._to_log = REJECTIONS_LOGGED

    def __len__(self) -> int:
        return len(self._batch)

    def add(self, topic: str, payload: bytes) -> None:
        """Parses one message; what is no event goes into the batch with the reason."""
        try:
            parsed = parse(topic, payload)
        except RejectedError as problem:
            self.reject(topic, payload, str(problem))
            return
        if isinstance(parsed, Event):
            self._batch.events.append(parsed)
        else:
            self._batch.states.append(parsed)

    def reject(self, topic: str, payload: bytes, reason: str) -> None:
        """A message that was found to be no event."""
        self._batch.rejected.append(Rejected(topic, payload, reason))
        self._log_rejected(self._batch.rejected[-1])

    def drop(self) -> None:
        """Forgets what is not committed; it comes again from where it came."""
        self._batch = Batch()

    def commit(self) -> None:
        """Stores what is in the batch, and begins a new one.

        Raises:
            OperatorError: the store cannot take it now; it stays in the batch.
        """
        if len(self._batch):
            try:
                try:
                    self._add(self._batch)
                except RejectedError:
                    self._add_one_by_one(self._batch)
            except OperatorError as problem:
                raise OperatorError(f"{problem}; nothing is acknowledged until it does") from None
            self._batch = Batch()
        self.tell_status()

    def _add(self, batch: Batch) -> None:
        began = time.monotonic()
        added = self._store.add(batch)
        if self._metrics:
            taken_s = time.monotonic() - began
            self._metrics.committed(batch.events, added.stored, added.duplicates, len(batch.rejected), taken_s)
        self.counts.stored += added.stored
        self.counts.duplicates += added.duplicates
        self.counts.rejected += len(batch.rejected)

    def _add_one_by_one(self, batch: Batch) -> None:
        """One message that the database will never take must not hold up the others."""
        singles = [Batch(events=[one]) for one in batch.events] + [Batch(states=[one]) for one in batch.states]
        for single in (Batch(rejected=batch.rejected), *singles):
            try:
                self._add(single)
            except RejectedError as problem:
                one = (single.events or single.states)[0]
                rejected = Rejected(f"{one.site}/{one.robot}", repr(one).encode(errors="replace"), str(problem))
                self._log_rejected(rejected)
                self._add(Batch(rejected=[rejected]))

    def _log_rejected(self, rejected: Rejected) -> None:
        if self._to_log > 0:
            log.warning("rejected from %r: %s", rejected.topic[:200], rejected.reason)
        self._to_log -= 1

    def tell_status(self) -> None:
        """Logs the counts, when some time has passed and they changed."""
        said, at = self._status
        now = time.monotonic()
        if now - at < STATUS_S:
            return
        if str(self.counts) != said:
            log.info("%s", self.counts)
        self._status = (str(self.counts), now)
        self._to_log = REJECTIONS_LOGGED


class StoreSink:
    """Of the MQTT inlet: fills the intake's batch, and settles it when it is due."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._mids: list[int] = []
        self._since = 0.0  # time.monotonic() of the first in the batch
        self._seen = 0  # size of the batch at the last look

    def take(self, message: Received) -> None:
        if not len(self._intake):
            self._since = time.monotonic()
        self._intake.add(message.topic, message.payload)
        if message.mid:
            self._mids.append(message.mid)

    def room(self) -> int:
        return BATCH_MESSAGES - len(self._intake)

    def wait_s(self) -> float:
        return QUIET_S if len(self._intake) else IDLE_S

    def settle(self) -> Sequence[int]:
        size = len(self._intake)
        quiet, self._seen = size == self._seen, size
        late = time.monotonic() - self._since > BATCH_S
        return self.finish() if not size or quiet or late or size >= BATCH_MESSAGES else ()

    def finish(self) -> Sequence[int]:
        self._intake.commit()
        mids, self._mids, self._seen = self._mids, [], 0
        return mids

    def connection_ended(self) -> None:
        self._mids = []
