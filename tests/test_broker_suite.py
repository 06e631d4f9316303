"""What jetloop asks of a broker, held against Mosquitto (TLS, access list), ActiveMQ Classic and the embedded one."""

import itertools
import os
import ssl
import sys
import time
from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from serving.contracts.events import event_topic, state_topic, wakeup_topic
from telemetry import mosquitto
from tests.conftest import ROOT, end, free_port, listens, start, wait_for
from tests.servers.activemq import PASSWORD, ActiveMQ, activemq  # noqa: F401
from tests.test_link_parts import SecureBroker

_numbers = itertools.count()


class Broker:
    """One of the three, with what a client of it needs."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.robot = f"r{os.getpid()}-{next(_numbers)}"  # brokers are shared between tests, robots are not
        self.secure: SecureBroker | None = None
        self.active: ActiveMQ | None = None
        self.clients: list[Client] = []

    def client(self, role: str, client_id: str = "", **options: object) -> "Client":
        """Connects as `robot`, `collector` or `releases`."""
        self.clients.append(Client(self, role, client_id or f"{role}-{self.robot}", **options))  # type: ignore[arg-type]
        return self.clients[-1]

    def context(self, role: str) -> ssl.SSLContext | None:
        if self.secure:
            return self.secure.context(f"lab/{self.robot}" if role == "robot" else role)
        return self.active.context() if self.active else None

    def restart_after_kill_9(self) -> None:
        running = self.secure or self.active
        assert running is not None
        running.kill()
        running.begin()

    def close(self) -> None:
        for client in self.clients:
            client.close()


class Client:
    """A paho client that keeps what it heard."""

    def __init__(self, broker: Broker, role: str, client_id: str, will: str = "", clean: bool = False) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []  # topic, payload, retained
        self.connected = self.ended = False
        self.granted: list[bool] = []
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean, reconnect_on_failure=False
        )
        context = broker.context(role)
        if context is not None:
            self.paho.tls_set_context(context)
        if broker.active:
            self.paho.username_pw_set("robots" if role == "robot" else role, PASSWORD)
        if will:
            self.paho.will_set(will, b"offline", qos=1, retain=True)
        self.paho.on_connect = lambda *given: setattr(self, "connected", not given[3].is_failure)
        self.paho.on_disconnect = lambda *_: setattr(self, "ended", True)
        self.paho.on_subscribe = lambda *given: self.granted.append(not given[3][0].is_failure)
        self.paho.on_message = lambda *given: self.heard.append(
            (given[2].topic, given[2].payload, bool(given[2].retain))
        )
        self.paho.connect("127.0.0.1", broker.port)
        self.paho.loop_start()
        wait_for(lambda: self.connected or self.ended, what="an answer of the broker")

    def subscribe(self, topic: str) -> bool:
        count = len(self.granted)
        self.paho.subscribe(topic, qos=1)
        wait_for(lambda: len(self.granted) > count or self.ended, what="the answer to the subscription")
        return not self.ended and self.granted[-1]

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        sent = self.paho.publish(topic, payload, qos=1, retain=retain)
        wait_for(lambda: sent.is_published() or self.ended, what="the acknowledgement")

    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.heard]

    def drop(self) -> None:
        """Ends the connection without a goodbye."""
        sock = self.paho.socket()
        assert sock is not None
        sock.shutdown(2)
        wait_for(lambda: self.ended, what="the end of the connection")
        self.close()

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    running = SecureBroker(tmp_path_factory.mktemp("mosquitto"))
    running.certificates.issue("releases", 7)
    mosquitto.write(running.certificates, running.folder / "mosquitto", "127.0.0.1", running.port, "root")
    running.reload()
    yield running
    running.close()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    log = tmp_path_factory.mktemp("embedded") / "log"
    process = start([sys.executable, "-m", "pipelines.cli", "broker", "--port", str(port)], log, cwd=ROOT)
    wait_for(lambda: listens(port), what="the embedded broker listening")
    yield port
    end(process)


@pytest.fixture(params=["mosquitto", "activemq", "embedded"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "mosquitto":
        secure = request.getfixturevalue("secure")
        made = Broker(request.param, secure.port)
        made.secure = secure
        secure.certificates.issue(f"lab/{made.robot}", 7)
    elif request.param == "activemq":
        active = request.getfixturevalue("activemq")
        made = Broker(request.param, active.port)
        made.active = active
    else:
        made = Broker(request.param, request.getfixturevalue("embedded"))
    yield made
    made.close()


def test_events_wait_for_a_collector_that_is_away(broker: Broker) -> None:
    """What is published at QoS 1 while a persistent session is away is delivered when it comes back, in order."""
    topic = event_topic("lab", broker.robot, "collision")
    collector = broker.client("collector")
    assert collector.subscribe(f"jetloop/v1/lab/{broker.robot}/event/+")
    collector.close()
    robot = broker.client("robot")
    for number in range(50):
        robot.publish(topic, b"%d" % number)
    again = broker.client("collector")
    again.subscribe(f"jetloop/v1/lab/{broker.robot}/event/+")
    wait_for(lambda: len(again.heard) >= 50, what="the events that waited")
    assert again.payloads() == [b"%d" % number for number in range(50)]


def test_the_last_will_says_that_a_robot_is_gone(broker: Broker) -> None:
    """A robot whose connection breaks is reported offline, retained; one that says goodbye is not."""
    topic = state_topic("lab", broker.robot)
    collector = broker.client("collector")
    assert collector.subscribe(topic)
    polite = broker.client("robot", will=topic, clean=True)
    polite.publish(topic, b"online", retain=True)
    polite.close()
    lost = broker.client("robot", will=topic, clean=True)
    lost.publish(topic, b"online again", retain=True)
    lost.drop()
    wait_for(lambda: b"offline" in collector.payloads(), what="the last will")
    assert collector.payloads() == [b"online", b"online again", b"offline"]
    late = broker.client("collector", client_id=f"late-{broker.robot}" if not broker.secure else "")
    late.subscribe(topic)
    wait_for(lambda: (topic, b"offline", True) in late.heard, what="the retained will")


def test_the_state_is_retained_and_can_be_taken_away(broker: Broker) -> None:
    """Who subscribes later gets the newest state, once; an empty one takes it off the broker."""
    topic = state_topic("lab", broker.robot)
    robot = broker.client("robot")
    robot.publish(topic, b"first", retain=True)
    robot.publish(topic, b"second", retain=True)
    collector = broker.client("collector", clean=True)
    assert collector.subscribe(topic)
    wait_for(lambda: collector.heard, what="the retained state")
    assert collector.heard == [(topic, b"second", True)]
    robot.publish(topic, b"", retain=True)
    wait_for(lambda: b"" in collector.payloads(), what="the empty state")
    collector.close()
    later = broker.client("collector", clean=True)
    later.subscribe(topic)
    robot.publish(topic, b"third")
    wait_for(lambda: later.heard, what="the live state")
    assert later.payloads() == [b"third"]


def test_a_wake_up_reaches_the_robots(broker: Broker) -> None:
    """The release service's retained wake-up reaches a robot that is there, and one that comes later."""
    topic = wakeup_topic(f"ring-{broker.robot}")
    early = broker.client("robot")
    assert early.subscribe(topic)
    broker.client("releases").publish(topic, b"look now", retain=True)
    wait_for(lambda: early.payloads() == [b"look now"], what="the wake-up")
    early.close()
    later = broker.client("robot", clean=True)
    later.subscribe(topic)
    wait_for(lambda: (topic, b"look now", True) in later.heard, what="the retained wake-up")


def test_what_a_robot_may_not_say_reaches_nobody(broker: Broker) -> None:
    """A robot's false release, and its subscription to what it may not read, come to nothing where there are rights."""
    if broker.name == "embedded":
        pytest.skip("the embedded broker knows no rights: it is for this machine alone")
    topic = wakeup_topic(f"false-{broker.robot}")
    witness = broker.client("releases")
    assert witness.subscribe(topic)
    liar = broker.client("robot")
    liar.publish(topic, b"a lie", retain=True)
    witness.publish(topic, b"the truth")
    wait_for(lambda: witness.heard, what="the true wake-up")
    assert witness.payloads() == [b"the truth"]
    spy = broker.client("robot", client_id=f"spy-{broker.robot}")
    spy.subscribe("elsewhere")
    publisher = broker.client("collector")
    publisher.publish("elsewhere", b"secret")
    assert spy.heard == []


def test_nothing_that_was_saved_is_lost_by_a_kill_9(broker: Broker) -> None:
    """Messages and sessions survive: with ActiveMQ all that it acknowledged, with Mosquitto what it saved since."""
    if broker.name == "embedded":
        pytest.skip("the embedded broker keeps everything in memory, and says so")
    topic = event_topic("lab", broker.robot, "collision")
    collector = broker.client("collector")
    assert collector.subscribe(topic)
    collector.close()
    robot = broker.client("robot")
    for number in range(30):
        robot.publish(topic, b"%d" % number)
    told = time.time()
    if broker.secure:
        database = broker.secure.folder / "mosquitto" / "state" / "mosquitto.db"
        wait_for(lambda: database.exists() and database.stat().st_mtime > told, what="Mosquitto's save")
    broker.restart_after_kill_9()
    again = broker.client("collector")
    wait_for(lambda: len(set(again.payloads())) >= 30, what="all messages after the kill")
    assert set(again.payloads()) == {b"%d" % number for number in range(30)}
