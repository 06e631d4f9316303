"""One persistent session with an MQTT broker: receive, hand on, acknowledge what is safe. Used by collector and bridge.

What becomes of a message is the sink's business; the inlet knows connections. The broker keeps a message until it is
acknowledged, and the inlet acknowledges what the sink calls settled, on the connection by which it came. One thread
does everything. When the sink cannot go on, the inlet leaves the broker, which then keeps what comes.
"""

import logging
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from serving.backoff import backoff_s
from serving.errors import OperatorError
from telemetry.mqtt_options import Broker

KEEP_ALIVE_S = 30
CONNACK_TIMEOUT_S = 10.0
RETRY_MIN_S, RETRY_MAX_S = 0.7, 15.0
STEADY_S = 10.0  # a connection that lasted this long was a good one
SESSION_KEPT_S = 30 * 24 * 3600  # MQTT 5: how long the broker keeps the session of a client that is away

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """A message as it came."""

    topic: str
    payload: bytes
    mid: int  # to acknowledge; 0 for QoS 0, which nobody acknowledges


class Sink(Protocol):
    """Where messages go. Any method may raise OperatorError: then the inlet leaves the broker, and tries again."""

    def take(self, message: Received) -> None:
        """One message, which stays the sink's from here on."""

    def room(self) -> int:
        """How many more it takes now."""

    def wait_s(self) -> float:
        """How long the inlet may wait for the next message before it calls `settle` again."""

    def settle(self) -> Sequence[int]:
        """Does what is due; returns the mids of what is safe now, in the order in which they came."""

    def finish(self) -> Sequence[int]:
        """The last `settle`: makes everything safe that it can."""

    def connection_ended(self) -> None:
        """What is not settled can no longer be acknowledged: the broker sends it again."""


class Inlet:
    """A persistent session under a client id.

    Args:
        broker: where, and who we are.
        client_id: under which the broker keeps what comes while we are away.
        topics: to subscribe to, QoS 1.
        sink: where messages go.
        receive_maximum: speak MQTT 5 and let the broker have so many unacknowledged messages on the way at most;
            needed for shared subscriptions. None: MQTT 3.1.1, which every broker knows.
    """

    def __init__(
        self, broker: Broker, client_id: str, topics: Sequence[str], sink: Sink, receive_maximum: int | None = None
    ) -> None:
        self._broker, self._client_id, self._topics, self._sink = broker, client_id, topics, sink
        self._receive_maximum = receive_maximum
        self._client: paho.Client | None = None
        self._accepted = False  # by the broker, with CONNACK
        self._refusal = ""
        self._received = 0
        self._failures = 0
        self._short_lived = 0  # connections in a row that ended soon
        self._connected_at = 0.0  # time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Receives until `stop` is set; then finishes and acknowledges.

        Raises:
            OperatorError: the sink could not finish; what is left is not acknowledged.
        """
        while not stop.is_set():
            try:
                self._step()
            except OperatorError as problem:
                self._leave()
                self._wait(stop, str(problem))
        try:
            self._acknowledge(self._sink.finish())
        finally:
            self._leave()

    def _step(self) -> None:
        self._acknowledge(self._sink.settle())
        if self._client is None:
            self._connect()
        self._receive(self._sink.wait_s())
        if self._failures and time.monotonic() - self._connected_at > STEADY_S:
            self._failures = self._short_lived = 0

    def _wait(self, stop: threading.Event, why: str) -> None:
        self._failures += 1
        pause_s = backoff_s(self._failures, RETRY_MIN_S, RETRY_MAX_S)
        log.warning("%s; trying again in %.1f s", why, pause_s)
        stop.wait(pause_s)

    # ---- the connection

    def _connect(self) -> None:
        five = self._receive_maximum is not None
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if five else False,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = 5.0
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        # With a callback here paho only queues what is sent, and `_receive` writes it when the socket takes it.
        client.on_socket_register_write = lambda *_: None
        client.on_socket_unregister_write = lambda *_: None
        self._broker.prepare(client)
        self._accepted, self._refusal = False, ""
        try:
            self._client = client
            if five:
                client.connect(
                    self._broker.host, self._broker.port, KEEP_ALIVE_S, clean_start=False, properties=self._properties()
                )
            else:
                client.connect(self._broker.host, self._broker.port, KEEP_ALIVE_S)
        except (OSError, ValueError) as problem:  # ValueError: paho's for a host it cannot use
            self._client = None
            raise OperatorError(f"no broker at {self._broker} ({problem})") from None
        deadline = time.monotonic() + CONNACK_TIMEOUT_S
        while not self._accepted:
            if time.monotonic() > deadline:
                raise OperatorError(f"the broker at {self._broker} does not answer")
            self._receive(0.25)
        self._connected_at = time.monotonic()

    def _properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_KEPT_S
        properties.ReceiveMaximum = self._receive_maximum
        return properties

    def _leave(self) -> None:
        """Ends the connection, if there is one; what is not acknowledged stays with the broker."""
        client, self._client = self._client, None
        if client is None:
            return
        self._sink.connection_ended()
        deadline = time.monotonic() + 1.0
        if client.socket() is not None:
            client.disconnect()
        while client.socket() is not None and client.want_write() and time.monotonic() < deadline:
            client.loop_write()
        sock = client.socket()
        if sock is not None:
            sock.close()

    def _acknowledge(self, mids: Sequence[int]) -> None:
        if self._client is not None:
            for mid in mids:
                self._client.ack(mid, 1)

    def _receive(self, wait_s: float) -> None:
        """Waits for the socket, then reads what is there, as much as the sink takes, and writes what is due."""
        client = self._client
        sock = client.socket() if client is not None else None
        if client is None or sock is None:
            raise self._broken()
        room = self._sink.room()
        pending = getattr(sock, "pending", None)  # bytes that TLS has read already and select does not see
        unread = bool(pending and pending())
        reads, writes = [sock] if room > 0 else [], [sock] if client.want_write() else []
        ready, writable, _ = select.select(reads, writes, [], 0 if reads and unread else wait_s)
        codes = [client.loop_write()] if writable else []
        if ready or (reads and unread):
            before = self._received
            while True:  # one packet a call: until a call brings no message
                count = self._received
                codes.append(client.loop_read())
                if codes[-1] or self._received == count or self._received - before >= room:
                    break
        codes.append(client.loop_misc())
        if any(codes) or self._refusal or client.socket() is None:
            raise self._broken()

    def _broken(self) -> OperatorError:
        if self._refusal:
            return OperatorError(self._refusal)
        if not self._accepted:
            return OperatorError(
                f"the broker at {self._broker} hung up before it answered; are certificate, user and rights in order?"
            )
        self._short_lived += 1
        hint = f"; does another one run as `{self._client_id}`?" if self._short_lived > 2 else ""
        return OperatorError(f"the connection to the broker at {self._broker} ended{hint}")

    # ---- paho's callbacks

    def _on_connect(self, client: paho.Client, _: Any, flags: Any, reason: Any, __: Any) -> None:
        if reason.is_failure:
            self._refusal = f"the broker at {self._broker} refuses this client: {reason}"
            return
        self._accepted = True
        missed = "" if flags.session_present else "; it knew no session of this name, so what came before was not kept"
        log.info("connected to %s as `%s`%s", self._broker, self._client_id, missed)
        # Also in a session that persists: a broker that lost its memory learns them, and retained states come again.
        client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, _: paho.Client, __: Any, ___: int, reasons: Any, ____: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = f"the broker at {self._broker} refuses the subscription to {', '.join(self._topics)}"

    def _on_message(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._received += 1
        topic = message._topic.decode(errors="replace")  # `message.topic` raises on what is not UTF-8
        self._sink.take(Received(topic, bytes(message.payload), message.mid if message.qos else 0))
