"""Rings the robots: a retained MQTT message per channel that says `look now`. Nobody trusts it, nothing waits for it.

A broker that is down is a logged retry: what it missed is sent when it is back.
"""

import logging
import threading
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from serving.contracts.events import wakeup_topic
from serving.contracts.releases import Channel, Wakeup
from telemetry.mqtt_options import Broker

log = logging.getLogger(__name__)


class Bell:
    """Keeps the newest wake-up of each channel and sends it, now or when the broker can be reached."""

    def __init__(self, broker: Broker) -> None:
        """Raises OperatorError: a file of certificate or key is not usable."""
        self._broker = str(broker)
        self._newest: dict[str, Wakeup] = {}
        self._lock = threading.Lock()
        self._reported_down = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(min_delay=1, max_delay=30)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_connect_fail = self._not_reached
        broker.prepare(self._client)
        self._client.connect_async(broker.host, broker.port, keepalive=30)

    def start(self) -> None:
        """Connects in a thread of its own; returns at once."""
        self._client.loop_start()

    def ring(self, channel: Channel) -> None:
        """Sends a channel's wake-up, or keeps it for when the broker is back. Never blocks, never raises."""
        with self._lock:
            self._newest[channel.channel] = Wakeup(release_id=channel.release_id, sequence=channel.sequence)
            if self._client.is_connected():
                self._send(channel.channel)

    def stop(self) -> None:
        """Disconnects; retained messages stay with the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self, channel: str) -> None:
        self._client.publish(wakeup_topic(channel), msgspec.json.encode(self._newest[channel]), qos=1, retain=True)

    def _connected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._report(f"refuses the connection ({reason})")
            return
        log.info("MQTT broker %s: connected", self._broker)
        self._reported_down = False
        with self._lock:
            for channel in self._newest:
                self._send(channel)

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._report(f"is gone ({reason})")

    def _not_reached(self, _client: Any, _data: Any) -> None:
        self._report("cannot be reached")

    def _report(self, what: str) -> None:
        if not self._reported_down:
            log.warning("MQTT broker %s %s: retrying; robots look by themselves meanwhile", self._broker, what)
        self._reported_down = True
