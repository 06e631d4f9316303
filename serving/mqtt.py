"""The robot's line to the broker: drains the outbox, tells the robot's state, hears wake-ups.

One thread owns the connection and does everything on it, so no lock guards the protocol. A message leaves the outbox
only after the broker acknowledged it; after a broken connection whatever is left is sent again, in order, with the same
id. What the broker sends is never trusted: a wake-up only makes the updater look at the signed repository.
"""

import collections
import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from serving.config import MqttSettings
from serving.contracts.events import Event, RobotState, event_topic, state_topic, utc_now, wakeup_topic
from serving.errors import OperatorError
from serving.outbox import Message, Outbox

_IDLE_S = 0.5  # how often a connection without traffic looks after keep-alive
_ACK_TIMEOUT_S = 30.0  # a broker that answers pings but acknowledges nothing is left and tried again
_FORGET_EVERY_S = 0.2  # acknowledged messages are deleted together, a transaction each time
_CONNACK_TIMEOUT_S = 10.0
_BACKOFF_BASE_S = 0.5
_STABLE_S = 10.0  # a connection that lasted this long was a good one: the next failure is the first again

log = logging.getLogger(__name__)


def backoff_s(failures: int, base_s: float, cap_s: float) -> float:
    """How long to wait after so many failures in a row: doubling up to `cap_s`, half of it by chance.

    The chance part keeps a fleet that lost the same server from coming back all at once.
    """
    return float(min(cap_s, base_s * 2 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0))


class Link:
    """One robot's connection to its broker.

    Args:
        settings: the table `[mqtt]` of robot.toml.
        outbox: drained oldest first.
        site, robot, session, ring: who this is; `ring` names the wake-up topic.
        on_wakeup: called on every wake-up, also the retained one at connect; it must return quickly.

    Raises:
        OperatorError: a certificate or key cannot be read.
    """

    def __init__(
        self,
        settings: MqttSettings,
        outbox: Outbox,
        site: str,
        robot: str,
        session: str,
        ring: str,
        on_wakeup: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        outbox.on_put = self._wake
        self._site, self._robot, self._session, self._ring = site, robot, session, ring
        self._on_wakeup = on_wakeup
        self._tls = _tls_context(settings)
        self._state: Optional[RobotState] = None
        self._state_changed = False
        self._stopping = threading.Event()
        self._give_up_at = float("inf")  # time.monotonic()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Connects, and keeps connected, in a thread of its own; a broker that is not there is tried again."""
        self._thread.start()

    def publish_state(self, state: RobotState) -> None:
        """Tells the robot's state, retained, now or as soon as there is a connection. Only the newest counts."""
        self._state = state
        self._state_changed = True
        self._wake()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Sends what it can in time, says goodbye (state offline, retained), and disconnects.

        What was not acknowledged stays in the outbox.
        """
        self._give_up_at = time.monotonic() + timeout_s
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            self._wake_write.send(b"w")

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            connection = _Connection(self)
            try:
                connection.serve()
                return
            except OperatorError as problem:
                failures = 1 if connection.lasted_s() > _STABLE_S else failures + 1
                self._say(logging.WARNING, f"{problem}; trying again, up to every {self._settings.reconnect_max_s:g} s")
            except Exception:  # a fault of ours must not silence the robot for good
                failures += 1
                log.exception("the link failed; trying again")
            finally:
                connection.close()
            self._stopping.wait(backoff_s(failures, _BACKOFF_BASE_S, self._settings.reconnect_max_s))

    def _say(self, level: int, text: str) -> None:
        """Logs a change of state once, however often it is found."""
        if text != self._said:
            self._said = text
            log.log(level, "%s:%d: %s", self._settings.host, self._settings.port, text)

    def _offline_state(self, reason: str) -> RobotState:
        return RobotState(
            site=self._site,
            robot=self._robot,
            session=self._session,
            online=False,
            at=utc_now(),
            mode="offline",
            reason=reason,
            ring=self._ring,
        )


class _Connection:
    """One TCP connection from CONNECT to its end. A new one starts from the outbox again."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outbox = link._outbox
        self._settings = link._settings
        self._accepted_at: Optional[float] = None  # time.monotonic()
        self._refusal = ""
        self._queue: Deque[Message] = collections.deque()  # read from the outbox, not sent
        self._last_read = 0  # id
        self._look = True  # the outbox may hold more than was read
        self._in_flight: Dict[int, int] = {}  # MQTT message id -> id in the outbox; the state message -> 0
        self._acknowledged: List[int] = []  # ids in the outbox, not yet deleted
        self._forget_at = 0.0
        self._progress_at = time.monotonic()  # last acknowledgement, or last time that none was due
        self._client = self._make_client()

    def serve(self) -> None:
        """Connects and works until the link is stopped.

        Raises:
            OperatorError: there is no connection, or it broke.
        """
        self._connect()
        self._link._say(logging.INFO, f"connected, {self._outbox.depth()} messages wait")
        while not self._link._stopping.is_set():
            self._drain()
            self._turn()
        self._say_goodbye()

    def lasted_s(self) -> float:
        """How long ago the broker accepted this connection; 0 if it did not."""
        return 0.0 if self._accepted_at is None else time.monotonic() - self._accepted_at

    def close(self) -> None:
        """Deletes what was acknowledged and lets the socket go."""
        try:
            self._forget()
        except OperatorError as problem:
            log.error("acknowledged messages will be sent again: %s", problem)
        self._client.on_disconnect = None
        sock = self._client.socket()
        if sock is not None:
            sock.close()  # without DISCONNECT: the broker then publishes the last will

    def _make_client(self) -> paho.Client:
        link, settings = self._link, self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"jetloop-{link._site}-{link._robot}",
            clean_session=True,  # the outbox remembers, not the broker
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(settings.max_in_flight + 1)  # and the state
        client.connect_timeout = 5.0
        if settings.username:
            client.username_pw_set(settings.username, settings.password)
        if link._tls:
            client.tls_set_context(link._tls)
        will = msgspec.json.encode(link._offline_state("connection lost"))
        client.will_set(state_topic(link._site, link._robot), will, qos=1, retain=True)
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
        try:
            self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s)
        except (OSError, ValueError) as problem:  # ValueError: paho's for a host it cannot use
            raise OperatorError(f"the broker cannot be reached: {problem}") from None
        deadline = time.monotonic() + _CONNACK_TIMEOUT_S
        while self._accepted_at is None:
            if time.monotonic() > min(deadline, self._link._give_up_at):
                raise OperatorError("the broker does not answer CONNECT")
            self._turn()

    def _turn(self) -> None:
        """Waits for the socket or a wake-up, then reads and writes what there is.

        Raises:
            OperatorError: the connection broke.
        """
        sock = self._client.socket()
        if sock is None:
            raise OperatorError(self._refusal or "the connection broke")
        pending = getattr(sock, "pending", None)  # bytes that TLS has read already and select does not see
        wake = self._link._wake_read
        writes = [sock] if self._client.want_write() else []
        ready, writable, _ = select.select([sock, wake], writes, [], 0 if pending and pending() else _IDLE_S)
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
            raise OperatorError(self._refusal or "the connection broke")
        self._check_progress()

    def _check_progress(self) -> None:
        now = time.monotonic()
        if not self._in_flight:
            self._progress_at = now
        elif now - self._progress_at > _ACK_TIMEOUT_S:
            raise OperatorError(f"the broker acknowledged nothing for {_ACK_TIMEOUT_S:g} s")
        if self._acknowledged and now >= self._forget_at:
            self._forget()

    def _has_room(self) -> bool:
        return len(self._in_flight) < self._settings.max_in_flight

    def _drain(self) -> None:
        """Fills the in-flight window: the state if it changed, then the oldest messages."""
        if self._link._state_changed and self._link._state:
            self._link._state_changed = False
            self._publish_state(self._link._state)
        while self._has_room():
            if not self._queue:
                self._read_outbox()
            if not self._queue:
                return
            message = self._queue.popleft()
            payload = _stamped(message)
            if payload is None:
                self._acknowledged.append(message.id)
                continue
            self._publish(message.topic, payload, retain=False, outbox_id=message.id)

    def _read_outbox(self) -> None:
        if self._look:
            self._queue.extend(self._outbox.batch(10 * self._settings.max_in_flight, after=self._last_read))
            self._look = bool(self._queue)
            self._last_read = self._queue[-1].id if self._queue else self._last_read

    def _publish_state(self, state: RobotState) -> None:
        topic = state_topic(self._link._site, self._link._robot)
        self._publish(topic, msgspec.json.encode(state), retain=True, outbox_id=0)

    def _publish(self, topic: str, payload: bytes, retain: bool, outbox_id: int) -> None:
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            raise OperatorError(self._refusal or f"the connection broke ({paho.error_string(sent.rc)})")
        self._in_flight[sent.mid] = outbox_id

    def _forget(self) -> None:
        ids, self._acknowledged = self._acknowledged, []
        self._forget_at = time.monotonic() + _FORGET_EVERY_S
        try:
            self._outbox.done(ids)
        except OperatorError:
            self._acknowledged = ids + self._acknowledged
            raise

    def _say_goodbye(self) -> None:
        """Drains while there is time, then tells that the robot is offline, and disconnects without a will."""
        give_up_at = self._link._give_up_at
        drain_until = time.monotonic() + (give_up_at - time.monotonic()) / 2
        while time.monotonic() < drain_until and (self._outbox.depth() > len(self._acknowledged)):
            self._drain()
            self._turn()
        self._publish_state(self._link._offline_state("stopped"))
        while self._in_flight and time.monotonic() < give_up_at:
            self._turn()
        self._forget()
        self._client.disconnect()
        while self._client.socket() is not None and self._client.want_write() and time.monotonic() < give_up_at:
            self._client.loop_write()
        self._link._say(logging.INFO, f"disconnected, {self._outbox.depth()} messages wait")

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"the broker refused the connection: {reason}; check username, password and certificate"
            return
        self._accepted_at = time.monotonic()
        self._link._state_changed = self._link._state is not None
        client.subscribe(wakeup_topic(self._link._ring), qos=1)

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            topic = wakeup_topic(self._link._ring)
            log.warning("the broker refused the subscription to %s: releases are found by polling alone", topic)

    def _on_publish(self, _client: paho.Client, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
        outbox_id = self._in_flight.pop(mid, 0)
        self._progress_at = time.monotonic()
        if outbox_id:
            self._acknowledged.append(outbox_id)

    def _on_message(self, _client: paho.Client, _userdata: Any, _message: Any) -> None:
        try:
            self._link._on_wakeup()
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


def _tls_context(settings: MqttSettings) -> Optional[ssl.SSLContext]:
    if not (settings.tls or settings.ca):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as problem:
        files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.key)))
        raise OperatorError(f"[mqtt] {files or 'ca'}: not usable for TLS: {problem}") from None
    return context
