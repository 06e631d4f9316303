"""A connection of a simulated fleet: one MQTT client of one robot, or of several, on asyncio's loop.

paho does the protocol; asyncio watches its socket, so that one thread carries a thousand of them. What the broker did
not acknowledge is sent again on the next connection, in order and with the same id, as the robot's link does
(serving/mqtt_connection.py).
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from serving.backoff import backoff_s
from serving.config import MqttSettings
from serving.contracts.events import event_topic, state_topic, wakeup_topic
from serving.errors import OperatorError
from serving.mqtt_tls import tls_context
from simulator.fleet_robot import FleetRobot, Made, stamped
from simulator.fleet_tally import Tally

_CONNACK_TIMEOUT_S = 10.0
_ACK_TIMEOUT_S = 30.0
_MISC_EVERY_S = 1.0
_BACKOFF_BASE_S = 0.5

log = logging.getLogger("fleet")


class BrokenError(Exception):
    """The connection ended; the text says why."""


class Line:
    """Keeps one connection, for as long as `run` runs.

    Args:
        client_id: of the MQTT client.
        robots: that speak through it; one, unless the fleet shares connections.
        settings: the table `[mqtt]` of robot.toml; `max_in_flight` is for each robot.
        tally: of the fleet.
        connecting: threads in which TCP and TLS begin.
        on_wakeup: called on every wake-up with its payload, for these robots.
    """

    def __init__(
        self,
        client_id: str,
        robots: Sequence[FleetRobot],
        settings: MqttSettings,
        tally: Tally,
        connecting: Executor,
        on_wakeup: Callable[["Line", bytes], None],
    ) -> None:
        self.robots = robots
        self._client_id, self._settings, self._tally = client_id, settings, tally
        self._connecting, self._on_wakeup = connecting, on_wakeup
        self._client: paho.Client | None = None  # while there is a connection that the broker accepted
        self._broken: asyncio.Future[None] | None = None
        self._in_flight: dict[int, tuple[FleetRobot, Made | None]] = {}  # MQTT message id -> what; None: a state
        self._strangers: dict[int, str] = {}  # messages of no robot: MQTT message id -> what the tally calls them
        self._left = False  # it said goodbye
        self._progress_s = 0.0  # last acknowledgement, or last time that none was due
        self._window = min(settings.max_in_flight * len(robots), 2000)
        for robot in robots:
            robot.on_put = self.drain

    async def run(self) -> None:
        """Connects, and connects again after each failure, until the goodbye."""
        failures = 0
        while True:
            started_s = time.monotonic()
            try:
                await self._serve()
            except (BrokenError, OperatorError) as problem:
                if self._left:
                    return
                lasted = time.monotonic() - started_s > 10
                failures = 1 if lasted else failures + 1
                self._tally.breaks[str(problem)] += 1
            await asyncio.sleep(backoff_s(failures, _BACKOFF_BASE_S, self._settings.reconnect_max_s))

    def kick(self, why: str) -> None:
        """Ends the connection without a goodbye, as a lost network does."""
        self._end(why)

    def drain(self) -> None:
        """Hands over what waits, as far as the window of unacknowledged messages goes; in turns, each its oldest."""
        if self._client is None:
            return
        for robot in self.robots:
            if robot.state_changed:
                robot.state_changed = False
                self._publish(state_topic(robot.who.site, robot.who.robot), msgspec.json.encode(robot.state()), robot)
        speaking = [robot for robot in self.robots if robot.waiting]
        while speaking and len(self._in_flight) < self._window:
            for robot in speaking:
                made = robot.waiting.popleft()
                event = made.event
                self._publish(event_topic(event.site, event.robot, event.type), stamped(event), robot, made)
            speaking = [robot for robot in speaking if robot.waiting]

    def publish_stranger(self, kind: str, topic: str, payload: bytes) -> None:
        """A message that no robot answers for, such as a malformed one; sent once, if there is a connection."""
        if self._client is not None:
            self._tally.kinds[kind].made += 1
            self._tally.kinds[kind].sent += 1
            self._strangers[self._client.publish(topic, payload, qos=1).mid] = kind

    async def goodbye(self, until_s: float) -> None:
        """Waits until the broker has everything or `until_s` (time.monotonic()), tells `offline`, and disconnects."""
        while time.monotonic() < until_s and any(robot.unacknowledged for robot in self.robots):
            await asyncio.sleep(0.02)
        if self._client is None:
            return
        for robot in self.robots:
            topic = state_topic(robot.who.site, robot.who.robot)
            self._publish(topic, msgspec.json.encode(robot.who.offline("stopped")), robot)
        while time.monotonic() < until_s and self._in_flight and self._client is not None:
            await asyncio.sleep(0.02)
        if self._client is not None:
            self._left = True
            self._client.disconnect()  # once it is written, paho closes the socket, which ends the connection
            while self._client is not None and time.monotonic() < until_s:
                await asyncio.sleep(0.01)

    # One connection.

    async def _serve(self) -> None:
        """From CONNECT to the end of the connection.

        Raises:
            BrokenError, OperatorError: always, in the end.
        """
        loop = asyncio.get_running_loop()
        client = self._make_client()
        self._broken = loop.create_future()
        try:
            settings = self._settings
            try:
                await loop.run_in_executor(
                    self._connecting, client.connect, settings.host, settings.port, settings.keepalive_s
                )
            except ssl.SSLError as problem:
                raise BrokenError(f"TLS failed ({problem.reason or problem})") from None
            except (OSError, ValueError) as problem:
                raise BrokenError(f"the broker cannot be reached ({problem})") from None
            sock = client.socket()
            if sock is None:
                raise BrokenError("the connection broke")
            self._watch(loop, client, sock)
            deadline_s = time.monotonic() + _CONNACK_TIMEOUT_S
            while True:
                done, _ = await asyncio.wait([self._broken], timeout=_MISC_EVERY_S)
                if done:
                    self._broken.result()
                self._look_after(client, deadline_s)
        finally:
            self._close(client)

    def _watch(self, loop: asyncio.AbstractEventLoop, client: paho.Client, sock: Any) -> None:
        """Lets asyncio read and write the socket from here on; until now paho only queued."""

        def read() -> None:
            code = client.loop_read()
            while not code and _pending(client):
                code = client.loop_read()
            self._after(code, client)

        def register(*_: Any) -> None:
            loop.add_writer(sock, lambda: self._after(client.loop_write(), client))

        def unregister(*_: Any) -> None:
            loop.remove_writer(sock)

        def close(*_: Any) -> None:
            loop.remove_reader(sock)
            loop.remove_writer(sock)

        client.on_socket_register_write = register
        client.on_socket_unregister_write = unregister
        client.on_socket_close = close
        loop.add_reader(sock, read)
        if client.want_write():
            register()

    def _after(self, code: int, client: paho.Client) -> None:
        if code or client.socket() is None:
            self._end("the connection broke")
        else:
            self.drain()

    def _look_after(self, client: paho.Client, connack_until_s: float) -> None:
        """Keep-alive, and brokers that accept or acknowledge nothing."""
        now_s = time.monotonic()
        if client.loop_misc():
            self._end("the broker answered no ping")
        elif self._client is None and now_s > connack_until_s:
            self._end("the broker did not answer CONNECT")
        elif not self._in_flight:
            self._progress_s = now_s
        elif now_s - self._progress_s > _ACK_TIMEOUT_S:
            self._end(f"the broker acknowledged nothing for {_ACK_TIMEOUT_S:g} s")

    def _end(self, why: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(BrokenError(why))
            self._broken.exception()  # it may be that nobody asks any more

    def _close(self, client: paho.Client) -> None:
        """Lets the socket go, and puts what was not acknowledged back in front, oldest first."""
        if self._client is not None:
            self._tally.connected -= 1
        self._client = None
        client.on_disconnect = client.on_socket_close = None
        sock = client.socket()
        if sock is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            sock.close()  # without DISCONNECT: the broker then publishes the last will
        for robot, made in reversed(self._in_flight.values()):
            if made is not None:
                robot.waiting.appendleft(made)
        self._in_flight.clear()
        self._strangers.clear()

    def _make_client(self) -> paho.Client:
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(0)  # the window is this module's
        client.connect_timeout = 10.0
        if settings.username:
            client.username_pw_set(settings.username, settings.password)
        context = tls_context(settings)
        if context is not None:
            client.tls_set_context(context)
        if len(self.robots) == 1:  # a connection has one will, so robots that share one have none
            who = self.robots[0].who
            will = msgspec.json.encode(who.offline("connection lost"))
            client.will_set(state_topic(who.site, who.robot), will, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_message = lambda _c, _u, message: self._on_wakeup(self, bytes(message.payload))
        client.on_socket_register_write = lambda *_: None
        client.on_socket_unregister_write = lambda *_: None
        return client

    def _publish(self, topic: str, payload: bytes, robot: FleetRobot, made: Made | None = None) -> None:
        assert self._client is not None
        kind = self._tally.kinds[made.event.type if made else "state"]
        kind.made += made is None
        kind.sent += 1
        self._in_flight[self._client.publish(topic, payload, qos=1, retain=made is None).mid] = robot, made

    # Called by paho, out of loop_read.

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._end(f"the broker refused the connection ({reason})")
            return
        self._client = client
        self._progress_s = time.monotonic()
        self._tally.connected += 1
        self._tally.connects += 1
        for robot in self.robots:
            robot.state_changed = True
        for ring in sorted({robot.who.ring for robot in self.robots}):
            client.subscribe(wakeup_topic(ring), qos=1)

    def _on_publish(self, _client: paho.Client, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._progress_s = time.monotonic()
        kind = self._strangers.pop(mid, None)
        if kind is not None:
            self._tally.kinds[kind].acknowledged += 1
        robot, made = self._in_flight.pop(mid, (None, None))
        if robot is not None and made is not None:
            robot.acknowledged(made)
        elif robot is not None:
            self._tally.kinds["state"].acknowledged += 1


def _pending(client: paho.Client) -> int:
    """Bytes that TLS has read already, and the loop does not see."""
    sock = client.socket()
    return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0
