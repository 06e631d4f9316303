"""amqtt with what a fleet's events need of it: at least once also when a subscriber goes away with messages in flight.

As it comes, amqtt 0.12 (read in its source, and measured with paho-mqtt):

- forgets a QoS 1 message that is not acknowledged within 5 s, and all that were in flight when a subscriber went away;
- keeps nothing for a persistent session without a user name (`AnonymousAuthPlugin`);
- never ends a connection that fell silent, so no last will when a robot leaves the radio's range;
- leaves an old connection open when its client comes back with a clean session, whose last will then arrives late, and
  takes a client with a persistent session that comes back quickly for one that is away;
- sends a returning client the retained messages of every other client's subscriptions too.

The classes here mend these. One thing more: MQTT drops a message that nobody has subscribed to, so what robots send
between the start of the broker and the first subscription of the collector would be lost. The collector's session is
therefore there from the start.

What stays: everything is in memory, MQTT 3.1.1 only, one process, no authentication, all that a client is sent and has
not acknowledged is on its way at once. Real fleets use Mosquitto or AMQ.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker, BrokerContext
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError
from amqtt.mqtt.constants import QOS_1
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import INCOMING, IncomingApplicationMessage, OutgoingApplicationMessage, Session

_KEEP_ALIVE_GRACE = 1.5  # of the client's keep-alive, MQTT 3.1.1, 3.1.2.10


class EveryoneMayConnect(BaseAuthPlugin):  # type: ignore[misc]
    """Lets anyone in, as `AnonymousAuthPlugin` does, but lets their sessions persist."""

    async def authenticate(self, *, session: Session) -> bool:
        return True


class EmbeddedHandler(BrokerProtocolHandler):  # type: ignore[misc]
    """One connection. A message stays in the session until it is acknowledged, over as many connections as it takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopped = False
        self._background: set[asyncio.Future[Any]] = set()
        # amqtt makes its own future for this after it began to read, and so misses a client that leaves at once.
        self._goodbye: asyncio.Future[DisconnectPacket | None] = asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self._stopped = True
        await super().stop()
        await self.handle_disconnect(None)

    async def wait_disconnect(self) -> DisconnectPacket | None:
        return await self._goodbye

    async def handle_disconnect(self, disconnect: DisconnectPacket | None) -> None:
        if not self._goodbye.done():
            self._goodbye.set_result(disconnect)

    def handle_read_timeout(self) -> None:
        self._in_background(self.handle_connection_closed())

    async def handle_puback(self, puback: PubackPacket) -> None:
        if self.session is None or puback.variable_header is None:
            return
        packet_id = puback.variable_header.packet_id
        self.session.inflight_out.pop(packet_id, None)  # also when nobody waits any more
        waiter = self._puback_waiters.get(packet_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(puback)

    async def _handle_qos1_message_flow(
        self, app_message: OutgoingApplicationMessage | IncomingApplicationMessage
    ) -> None:
        if app_message.direction == INCOMING or self.session is None or app_message.packet_id is None:
            await super()._handle_qos1_message_flow(app_message)
            return
        assert isinstance(app_message, OutgoingApplicationMessage)
        self.session.inflight_out[app_message.packet_id] = app_message
        if self._stopped or self._reader_task is None:
            return  # no connection now: _retry_deliveries sends it when there is one
        with self._acknowledgement(app_message.packet_id) as acknowledged:
            packet = app_message.build_publish_packet(dup=app_message.publish_packet is not None)
            app_message.publish_packet = packet
            await self._send_packet(packet)
            app_message.puback_packet = await acknowledged

    @contextmanager
    def _acknowledgement(self, packet_id: int) -> Iterator["asyncio.Future[PubackPacket]"]:
        waiter = self._puback_waiters.setdefault(packet_id, asyncio.get_running_loop().create_future())
        try:
            yield waiter
        finally:
            self._puback_waiters.pop(packet_id, None)

    async def _retry_deliveries(self) -> None:
        """Sends again what an earlier connection left, without making this connection wait for the answers."""
        assert self.session is not None
        for message in list(itertools.chain(self.session.inflight_in.values(), self.session.inflight_out.values())):
            assert isinstance(message, IncomingApplicationMessage | OutgoingApplicationMessage)
            self._in_background(self._handle_message_flow(message))

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class EmbeddedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker with `EmbeddedHandler`, persistent anonymous sessions and MQTT's rules for coming back.

    Args:
        config: of amqtt.
        keep_for: client id of a session that is there from the start, although its client has never connected.
        topics: what that session subscribes to, QoS 1.
    """

    def __init__(self, config: BrokerConfig, keep_for: str, topics: Sequence[str]) -> None:
        super().__init__(config)
        self._keep_for, self._topics = keep_for, topics

    async def _start_listeners(self) -> None:
        for topic in self._topics if self._keep_for else ():
            await BrokerContext(self).add_subscription(self._keep_for, topic, QOS_1)
        await super()._start_listeners()

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        _, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        if session.client_id:
            await self._end_connection(session.client_id)
        session.keep_alive = int(session.keep_alive * _KEEP_ALIVE_GRACE)
        return EmbeddedHandler(self.plugins_manager), session

    async def _delete_session(self, client_id: str) -> None:
        await self._end_connection(client_id)
        await super()._delete_session(client_id)

    async def _end_connection(self, client_id: str) -> None:
        """A client that comes back ends its old connection first, last will and all (MQTT 3.1.1, 3.1.4-2)."""
        session, handler = self._sessions.get(client_id, (None, None))
        if session is None or handler is None or not session.transitions.is_connected():
            return
        await handler.handle_connection_closed()
        await handler.stop()
        for _ in range(500):  # until the old connection's own loop is through with the session
            if not session.transitions.is_connected():
                return
            await asyncio.sleep(0.01)
        self.logger.error("the old connection of %s did not end", client_id)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Only to who subscribed: amqtt calls this with every known filter for a client that comes back."""
        subscribed = self._subscriptions.get(subscription[0], [])
        if any(one.client_id == session.client_id for one, _ in subscribed):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def serve(
    host: str, port: int, stop: asyncio.Event, *, on_listening: Callable[[], None], keep_for: str, topics: Sequence[str]
) -> None:
    """Runs the broker until `stop` is set.

    Args:
        host: address to listen on; an IPv6 address without brackets.
        port: TCP port.
        stop: set by whoever wants the broker to end.
        on_listening: called when clients can connect.
        keep_for, topics: of `EmbeddedBroker`.

    Raises:
        AMQTTError: the address cannot be listened on.
    """
    plugin = f"{EveryoneMayConnect.__module__}.{EveryoneMayConnect.__qualname__}"
    listener = ListenerConfig(bind=f"{host}:{port}", max_connections=-1)
    config = BrokerConfig(listeners={"default": listener}, plugins={plugin: {}})
    broker = EmbeddedBroker(config, keep_for, topics)
    await broker.start()
    on_listening()
    await stop.wait()
    await broker.shutdown()


__all__ = ["AMQTTError", "EmbeddedBroker", "serve"]
