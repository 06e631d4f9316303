"""The embedded broker, with real clients over real sockets."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from serving.errors import OperatorError
from telemetry.broker import refuse_network
from tests.conftest import ROOT, end, free_port, listens, start, wait_for

BROKER = [sys.executable, "-m", "pipelines.cli", "broker", "--port"]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """An embedded broker of this test's own."""
    number = free_port()
    process = start([*BROKER, str(number)], tmp_path / "broker.log", cwd=ROOT)
    try:
        wait_for(lambda: listens(number), what="the broker listening")
        yield number
    finally:
        end(process)


class Client:
    """A paho client that keeps what it gets; with `manual` it acknowledges nothing by itself."""

    def __init__(self, port: int, name: str, *, clean: bool = True, manual: bool = False, **will: Any) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.messages: list[mqtt.MQTTMessage] = []
        self.session_present = False
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        version = mqtt.CallbackAPIVersion.VERSION2  # type: ignore[attr-defined]
        self.paho = mqtt.Client(version, client_id=name, clean_session=clean, manual_ack=manual)
        self.paho.on_message = self._on_message
        self.paho.on_connect = self._on_connect
        self.paho.on_subscribe = lambda *_: self._subscribed.set()
        if will:
            self.paho.will_set(will["topic"], b"gone", qos=1, retain=True)
        self.paho.connect("127.0.0.1", port, will.get("keep_alive_s", 60))
        self.paho.loop_start()
        assert self._connected.wait(10)

    def _on_connect(self, _: object, __: object, flags: mqtt.ConnectFlags, *___: object) -> None:
        self.session_present = flags.session_present
        self._connected.set()

    def _on_message(self, _: object, __: object, message: mqtt.MQTTMessage) -> None:
        self.messages.append(message)
        self.got.append((message.topic, bytes(message.payload)))

    def subscribe(self, topic: str) -> "Client":
        self._subscribed.clear()
        self.paho.subscribe(topic, 1)
        assert self._subscribed.wait(10)
        return self

    def publish(self, topic: str, *payloads: bytes, retain: bool = False) -> None:
        for sent in [self.paho.publish(topic, payload, 1, retain) for payload in payloads]:
            sent.wait_for_publish(10)

    def leave(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def crash(self) -> None:
        """The connection ends without a word, as when a process is killed."""
        self.paho.loop_stop()
        connection = self.paho.socket()
        assert isinstance(connection, socket.socket)
        connection.close()


def test_retained_messages_reach_later_subscribers(port: int) -> None:
    """The last retained message of a topic is sent to who subscribes later, and none after it was cleared."""
    publisher = Client(port, "publisher")
    publisher.publish("state/a", b"1", b"2", retain=True)
    late = Client(port, "late").subscribe("state/+")
    wait_for(lambda: late.got == [("state/a", b"2")], what="the retained message")
    publisher.publish("state/a", b"", retain=True)
    later = Client(port, "later").subscribe("state/+")
    publisher.publish("state/b", b"x")
    wait_for(lambda: later.got == [("state/b", b"x")], what="the message after the retained one was cleared")
    for client in (publisher, late, later):
        client.leave()


def test_a_last_will_tells_of_a_crash_and_of_silence(port: int) -> None:
    """The last will comes when a connection breaks, when it falls silent, and not after a proper goodbye."""
    watch = Client(port, "watch").subscribe("state/+")
    Client(port, "crashing", topic="state/crashed").crash()
    wait_for(lambda: ("state/crashed", b"gone") in watch.got, what="the last will of a crash")
    Client(port, "leaving", topic="state/left").leave()
    silent = Client(port, "silent", topic="state/silent", keep_alive_s=1)
    silent.paho.loop_stop()  # alive, connected, and saying nothing
    wait_for(lambda: ("state/silent", b"gone") in watch.got, what="the last will of a silent client")
    assert [topic for topic, _ in watch.got] == ["state/crashed", "state/silent"]
    watch.leave()
    silent.leave()


def test_a_persistent_session_gets_what_it_missed(port: int) -> None:
    """What is published while a subscriber is away waits for it, in order."""
    Client(port, "robot", clean=False).subscribe("event/#").leave()
    publisher = Client(port, "publisher")
    payloads = [b"%d" % n for n in range(200)]
    publisher.publish("event/a", *payloads)
    back = Client(port, "robot", clean=False)
    wait_for(lambda: len(back.got) == 200, what="the missed messages")
    assert [payload for _, payload in back.got] == payloads
    assert back.session_present
    for client in (publisher, back):
        client.leave()


def test_what_is_not_acknowledged_comes_again(port: int) -> None:
    """Messages in flight to a subscriber that crashes are sent again, until acknowledged and not after."""
    first = Client(port, "collector", clean=False, manual=True).subscribe("event/#")
    publisher = Client(port, "publisher")
    publisher.publish("event/a", *(b"%d" % n for n in range(30)))
    wait_for(lambda: len(first.got) == 30, what="the first delivery")
    first.crash()
    second = Client(port, "collector", clean=False, manual=True)
    wait_for(lambda: len(second.got) == 30, what="the second delivery")
    for message in second.messages[:20]:
        second.paho.ack(message.mid, 1)
    second.leave()
    third = Client(port, "collector", clean=False, manual=True)
    publisher.publish("event/a", b"last")
    wait_for(lambda: ("event/a", b"last") in third.got, what="the newest message")
    assert sorted(int(payload) for _, payload in third.got[:-1]) == list(range(20, 30))
    for client in (publisher, third):
        client.leave()


def test_a_returning_client_gets_no_retained_messages_of_others(port: int) -> None:
    """A session that comes back is sent what it subscribed to, not what others did."""
    publisher = Client(port, "publisher").subscribe("state/#")
    publisher.publish("state/a", b"1", retain=True)
    Client(port, "robot", clean=False).subscribe("event/#").leave()
    back = Client(port, "robot", clean=False)
    publisher.publish("event/a", b"x")
    wait_for(lambda: bool(back.got), what="the event")
    assert back.got == [("event/a", b"x")]
    for client in (publisher, back):
        client.leave()


def test_port_taken_and_sigterm(port: int, tmp_path: Path) -> None:
    """A second broker on the port ends with one line; a broker that is told to end does, with code 0."""
    second = subprocess.run([*BROKER, str(port)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert second.stderr.count("\n") == 1

    own = free_port()
    log = tmp_path / "own.log"
    process = start([*BROKER, str(own)], log, cwd=ROOT)
    wait_for(lambda: listens(own), what="the broker listening")
    end(process)
    assert process.returncode == 0
    lines = log.read_text().splitlines()
    assert [line.split("jetloop.broker: ")[1].split()[0] for line in lines] == ["listening", "stopped"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "broker.lab"])
def test_a_network_address_is_refused(host: str) -> None:
    """A broker without authentication listens to this machine alone."""
    with pytest.raises(OperatorError, match="--allow-anonymous-network"):
        refuse_network(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_a_loopback_address_passes(host: str) -> None:
    """Every name of this machine itself is fine."""
    refuse_network(host)
