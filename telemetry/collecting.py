"""Receives, stores, acknowledges: the work of `jetloop collector`.

The broker keeps a message until it is acknowledged, and the collector acknowledges it after the commit that stored it.
Between the two a crash brings the message again, and the store leaves out what it has. One thread does everything:
receive, commit, acknowledge; so nothing can be acknowledged on another connection than the one it came by.
"""

import logging
import random
import threading
import time
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from serving.contracts.events import Event
from serving.errors import OperatorError, RejectedError
from telemetry.messages import SUBSCRIPTIONS, parse
from telemetry.store import Batch, Rejected, Store

log = logging.getLogger("jetloop.collector")

BATCH_MESSAGES = 500  # a batch is committed when it holds this many,
BATCH_S = 0.05  # or when its first message has waited this long,
QUIET_S = 0.002  # or when nothing more came for this long
IDLE_S = 0.25  # how often a collector with nothing to do looks whether it should end
KEEP_ALIVE_S = 30
RETRY_MIN_S, RETRY_MAX_S = 0.5, 15.0
STEADY_S = 10.0  # a connection that lasted this long was a good one
STATUS_S = 30.0  # between two status lines
REJECTIONS_LOGGED = 5  # in full, between two status lines; all are in the store


@dataclass
class Counts:
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        return f"stored {self.stored}, duplicates {self.duplicates}, rejected {self.rejected}"


@dataclass
class Pending:
    """Received and not yet committed."""

    batch: Batch = field(default_factory=Batch)
    to_acknowledge: list[tuple[int, int]] = field(default_factory=list)  # (mid, qos), of this connection
    since: float = 0.0  # time.monotonic() of the first


class Collector:
    """One persistent session with the broker, and one store."""

    def __init__(self, store: Store, host: str, port: int, client_id: str) -> None:
        self.counts = Counts()
        self._store = store
        self._where = f"{host}:{port}"
        self._client_id = client_id
        self._pending = Pending()
        self._connected = False
        self._connected_at = 0.0  # time.monotonic()
        self._short_lived = 0  # connections in a row that ended soon
        self._retry_s = RETRY_MIN_S
        self._status = ("", time.monotonic())
        self._to_log = REJECTIONS_LOGGED
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        self._client.connect_timeout = 5.0
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect_async(host, port, KEEP_ALIVE_S)

    def run(self, stop: threading.Event) -> None:
        """Collects until `stop` is set; then commits and acknowledges what was received."""
        log.info("storing into %s, from %s as `%s`", self._store.name, self._where, self._client_id)
        while not stop.is_set():
            if not self._connected:
                self._connect(stop)
            else:
                self._step(stop)
            self._tell_status()
        self._commit()
        self._client.disconnect()
        log.info("ended: %s", self.counts)

    # ---- the broker

    def _connect(self, stop: threading.Event) -> None:
        try:
            self._client.reconnect()
            self._connected = True
        except (OSError, ValueError) as problem:
            self._wait(stop, f"no broker at {self._where} ({problem})")

    def _wait(self, stop: threading.Event, why: str) -> None:
        """Says that it tries again, and sleeps until then; longer each time, and never in step with others."""
        pause_s = self._retry_s * random.uniform(0.7, 1.3)
        log.warning("%s; trying again in %.1f s", why, pause_s)
        stop.wait(pause_s)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)

    def _step(self, stop: threading.Event) -> None:
        """Receives at most one packet, and commits when the batch is due."""
        before = len(self._pending.batch)
        code = self._client.loop(timeout=QUIET_S if before else IDLE_S)
        size = len(self._pending.batch)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lost(stop, mqtt.error_string(code).rstrip(".").lower())
            return
        quiet = size and size == before
        late = size and time.monotonic() - self._pending.since > BATCH_S
        if quiet or late or size >= BATCH_MESSAGES:
            self._commit_or_wait(stop)

    def _lost(self, stop: threading.Event, why: str) -> None:
        """Stores what has come, without acknowledging it: the broker sends it again, if it remembers."""
        self._connected = False
        self._pending.to_acknowledge.clear()
        self._commit_or_wait(stop)
        if time.monotonic() - self._connected_at > STEADY_S:
            self._retry_s, self._short_lived = RETRY_MIN_S, 0
        else:
            self._short_lived += 1
        hint = f"; does another collector run as `{self._client_id}`?" if self._short_lived > 2 else ""
        self._wait(stop, f"the connection to the broker at {self._where} ended ({why}){hint}")

    def _on_connect(
        self, client: mqtt.Client, _: object, flags: mqtt.ConnectFlags, reason: ReasonCode, __: object
    ) -> None:
        if reason.is_failure:
            log.error("the broker at %s refuses this collector: %s", self._where, reason)
            return
        self._connected_at = time.monotonic()
        missed = (
            "" if flags.session_present else "; it knew no session of this name, so what came before went to nobody"
        )
        log.info("connected to %s%s", self._where, missed)
        # Also in a session that persists: a broker that lost its memory learns them, and retained states come again.
        client.subscribe([(topic, 1) for topic in SUBSCRIPTIONS])

    def _on_message(self, _: mqtt.Client, __: object, message: mqtt.MQTTMessage) -> None:
        batch = self._pending.batch
        if not len(batch):
            self._pending.since = time.monotonic()
        topic = message._topic.decode(errors="replace")  # `message.topic` raises on what is not UTF-8
        payload = bytes(message.payload)
        try:
            parsed = parse(topic, payload)
        except RejectedError as problem:
            self._reject(Rejected(topic, payload, str(problem)))
        else:
            if isinstance(parsed, Event):
                batch.events.append(parsed)
            else:
                batch.states.append(parsed)
        if message.qos > 0:
            self._pending.to_acknowledge.append((message.mid, message.qos))

    # ---- the store

    def _commit_or_wait(self, stop: threading.Event) -> None:
        """Commits; while the store does not take it, stays away from the broker, which keeps what comes."""
        while not stop.is_set():
            try:
                self._commit()
                return
            except OperatorError as problem:
                if self._connected:
                    self._connected = False
                    self._pending.to_acknowledge.clear()
                    self._client.disconnect()
                self._wait(stop, f"{problem}; nothing is acknowledged until it does")

    def _commit(self) -> None:
        """Stores what is pending, then acknowledges it.

        Raises:
            OperatorError: the store cannot take it now; it stays pending.
        """
        batch = self._pending.batch
        if not len(batch):
            return
        try:
            self._add(batch)
        except RejectedError:
            self._add_one_by_one(batch)
        for mid, qos in self._pending.to_acknowledge:
            self._client.ack(mid, qos)
        self._pending = Pending()

    def _add(self, batch: Batch) -> None:
        added = self._store.add(batch)
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

    # ---- what it says

    def _reject(self, rejected: Rejected) -> None:
        self._pending.batch.rejected.append(rejected)
        self._log_rejected(rejected)

    def _log_rejected(self, rejected: Rejected) -> None:
        if self._to_log > 0:
            log.warning("rejected from %r: %s", rejected.topic[:200], rejected.reason)
        self._to_log -= 1

    def _tell_status(self) -> None:
        said, at = self._status
        now = time.monotonic()
        if now - at < STATUS_S:
            return
        if str(self.counts) != said:
            log.info("%s", self.counts)
        self._status = (str(self.counts), now)
        self._to_log = REJECTIONS_LOGGED
