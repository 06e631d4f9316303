"""One connection to the broker, from CONNECT to its end. A new one starts from the outbox again.

One thread owns it and does everything on it, so no lock guards the protocol. A message leaves the outbox only after the
broker acknowledged it (settling.py says when); after a broken connection whatever is left is sent again, in order, with
the same id.
"""

import collections
import logging
import select
import time
from typing import Any, Callable, Deque, Dict, List, Optional

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from serving.config import MqttSettings
from serving.contracts.events import Event, RobotState, event_topic, state_topic, utc_now, wakeup_topic
from serving.errors import OperatorError
from serving.mqtt_desk import Desk, Who
from serving.mqtt_tls import described_certificate, refuse_foreign_certificate, tls_context
from serving.outbox import Message, Outbox
from serving.settling import Pace, Settling

_IDLE_S = 0.5  # how often a connection without traffic looks after keep-alive
_ACK_TIMEOUT_S = 30.0  # a broker that answers pings but acknowledges nothing is left and tried again
_CONNACK_TIMEOUT_S = 10.0
_READ_AHEAD = 10  # windows full, from the outbox at once

log = logging.getLogger(__name__)


class Connection:
    """One TCP connection.

    Args:
        settings: the table `[mqtt]` of robot.toml.
        outbox: drained oldest first.
        who: the robot.
        desk: what other threads ask for, and who is called on which wake-up.
        settling: what the broker acknowledged, over all connections.
        say: logs a change of state: level and text.
    """

    def __init__(
        self,
        settings: MqttSettings,
        outbox: Outbox,
        who: Who,
        desk: Desk,
        settling: Settling,
        say: Callable[[int, str], None],
    ) -> None:
        self._settings, self._outbox, self._who = settings, outbox, who
        self._desk, self._settling, self._say = desk, settling, say
        self._pace = Pace(settings.max_events_per_s)
        self._accepted_at: Optional[float] = None  # time.monotonic()
        self._refusal = ""
        self._queue: Deque[Message] = collections.deque()  # read from the outbox, not sent
        self._last_read = 0  # id
        self._look = True  # the outbox may hold more than was read
        self._in_flight: Dict[int, int] = {}  # MQTT message id -> id in the outbox; the state message -> 0
        self._progress_at = time.monotonic()  # last acknowledgement, or last time that none was due
        self._client = self._make_client()

    def serve(self) -> None:
        """Connects and works until the link is stopped.

        Raises:
            OperatorError: there is no connection, or it broke.
        """
        self._connect()
        self._say(logging.INFO, f"connected, {self._outbox.depth()} messages wait")
        while not self._desk.stopping.is_set():
            self._drain()
            self._turn()
        self._say_goodbye()

    def lasted_s(self) -> float:
        """How long ago the broker accepted this connection; 0 if it did not."""
        return 0.0 if self._accepted_at is None else time.monotonic() - self._accepted_at

    def close(self) -> None:
        """Deletes what was acknowledged and has settled, and lets the socket go."""
        try:
            self._settling.connection_ended()
        except OperatorError as problem:
            log.error("acknowledged messages will be sent again: %s", problem)
        self._client.on_disconnect = None
        sock = self._client.socket()
        if sock is not None:
            sock.close()  # without DISCONNECT: the broker then publishes the last will

    def _make_client(self) -> paho.Client:
        who, settings = self._who, self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"jetloop-{who.site}-{who.robot}",
            clean_session=True,  # the outbox remembers, not the broker
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(settings.max_in_flight + 1)  # and the state
        client.connect_timeout = 5.0
        if settings.username:
            client.username_pw_set(settings.username, settings.password)
        will = msgspec.json.encode(who.offline("connection lost"))
        client.will_set(state_topic(who.site, who.robot), will, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        # With a callback here paho only queues what is published, and this thread writes it when the socket takes it.
        client.on_socket_register_write = lambda *_: None
        client.on_socket_unregister_write = lambda *_: None
        return client

    def _connect(self) -> None:
        settings = self._settings
        refuse_foreign_certificate(settings, self._who.site, self._who.robot)
        context = tls_context(settings)
        if context is not None:
            self._client.tls_set_context(context)
        try:
            self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s)
        except (OSError, ValueError) as problem:  # ValueError: paho's for a host it cannot use
            raise OperatorError(f"the broker cannot be reached: {problem}") from None
        deadline = time.monotonic() + _CONNACK_TIMEOUT_S
        while self._accepted_at is None:
            if time.monotonic() > min(deadline, self._desk.give_up_at):
                raise OperatorError("the broker does not answer CONNECT")
            self._turn()

    def _turn(self) -> None:
        """Waits for the socket or a wake-up, then reads and writes what there is.

        Raises:
            OperatorError: the connection broke.
        """
        sock = self._client.socket()
        if sock is None:
            raise self._broken()
        pending = getattr(sock, "pending", None)  # bytes that TLS has read already and select does not see
        wake = self._desk.wake_read
        writes = [sock] if self._client.want_write() else []
        idle_s = self._pace.wait_s() if self._queue and self._has_room() else _IDLE_S
        ready, writable, _ = select.select([sock, wake], writes, [], 0 if pending and pending() else idle_s)
        if wake in ready:
            wake.recv(4096)
            self._look = True
        codes = []
        if sock in ready or (pending and pending()):
            codes.append(self._client.loop_read())
        if writable:
            codes.append(self._client.loop_write())
        codes.append(self._client.loop_misc())
        if any(codes) or self._client.socket() is None:
            raise self._broken()
        self._check_progress()

    def _check_progress(self) -> None:
        now = time.monotonic()
        if not self._in_flight:
            self._progress_at = now
        elif now - self._progress_at > _ACK_TIMEOUT_S:
            raise OperatorError(f"the broker acknowledged nothing for {_ACK_TIMEOUT_S:g} s")
        self._settling.forget_settled()

    def _broken(self) -> OperatorError:
        if self._refusal:
            return OperatorError(self._refusal)
        if self._accepted_at is None and self._settings.certificate:
            return OperatorError(
                "the broker hung up before it answered; is the certificate revoked or out of date, or unknown to it? "
                + described_certificate(self._settings)
            )
        return OperatorError("the connection broke")

    def _has_room(self) -> bool:
        return len(self._in_flight) < self._settings.max_in_flight

    def _drain(self) -> None:
        """Fills the in-flight window: the state if it changed, then the oldest messages."""
        if self._desk.state_changed and self._desk.state:
            self._desk.state_changed = False
            self._publish_state(self._desk.state)
        while self._has_room():
            if not self._queue:
                self._read_outbox()
            if not self._queue or self._pace.wait_s() > 0:
                return
            self._pace.took_one()
            message = self._queue.popleft()
            payload = _stamped(message)
            if payload is None:
                self._settling.acknowledged(message.id)
                continue
            self._publish(message.topic, payload, retain=False, outbox_id=message.id)

    def _read_outbox(self) -> None:
        if self._look:
            self._queue.extend(self._outbox.batch(_READ_AHEAD * self._settings.max_in_flight, after=self._last_read))
            self._look = bool(self._queue)
            self._last_read = self._queue[-1].id if self._queue else self._last_read

    def _publish_state(self, state: RobotState) -> None:
        topic = state_topic(self._who.site, self._who.robot)
        self._publish(topic, msgspec.json.encode(state), retain=True, outbox_id=0)

    def _publish(self, topic: str, payload: bytes, retain: bool, outbox_id: int) -> None:
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            raise self._broken()
        self._in_flight[sent.mid] = outbox_id

    def _say_goodbye(self) -> None:
        """Drains while there is time, then tells that the robot is offline, and disconnects without a will."""
        give_up_at = self._desk.give_up_at
        drain_until = time.monotonic() + (give_up_at - time.monotonic()) / 2
        while time.monotonic() < drain_until and self._outbox.depth() > len(self._settling):
            self._drain()
            self._turn()
        self._publish_state(self._who.offline("stopped"))
        while self._in_flight and time.monotonic() < give_up_at:
            self._turn()
        self._client.disconnect()
        while self._client.socket() is not None and self._client.want_write() and time.monotonic() < give_up_at:
            self._client.loop_write()
        self._say(logging.INFO, f"disconnected, {self._outbox.depth()} messages wait")

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"the broker refused the connection: {reason}; check username, password and certificate"
            return
        self._accepted_at = time.monotonic()
        self._desk.state_changed = self._desk.state is not None
        client.subscribe([(topic, 1) for topic in self._topics()])

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        for topic, reason in zip(self._topics(), reasons, strict=False):
            if reason.is_failure:
                log.warning("the broker refused the subscription to %s: releases are found by polling alone", topic)

    def _topics(self) -> List[str]:
        """Of the wake-ups, each once."""
        return list(dict.fromkeys(wakeup_topic(channel) for channel, _ in self._desk.listeners))

    def _on_publish(self, _client: paho.Client, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
        outbox_id = self._in_flight.pop(mid, 0)
        self._progress_at = time.monotonic()
        if outbox_id:
            self._settling.acknowledged(outbox_id)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        for channel, on_wakeup in self._desk.listeners:
            if message.topic == wakeup_topic(channel):
                try:
                    on_wakeup()
                except Exception:  # whatever it does wrong, events must go on
                    log.exception("the wake-up failed")


def _stamped(message: Message) -> Optional[bytes]:
    """The payload with the time at which it is handed over; None (logged) if a failing disk damaged it."""
    try:
        event = msgspec.json.decode(message.payload, type=Event)
        if message.topic != event_topic(event.site, event.robot, event.type):
            raise ValueError(f"its topic is {message.topic!r}")
    except (ValueError, RecursionError) as problem:
        log.error("message %d of the outbox is damaged and left out: %s", message.id, problem)
        return None
    return msgspec.json.encode(msgspec.structs.replace(event, sentat=utc_now()))
