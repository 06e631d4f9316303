"""The bridge as a process, between Mosquitto and a Kafka server, and the collectors behind it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import paho.mqtt.client as mqtt
import psutil
import pytest
from click.testing import CliRunner
from paho.mqtt.enums import CallbackAPIVersion

from serving.contracts.events import state_topic
from telemetry import bridge, collector, mosquitto
from telemetry.kafka_topics import KINDS
from telemetry.store import Store, open_reader
from tests.conftest import ROOT, end, start, wait_for
from tests.servers.kafka import KafkaServer, kafka  # noqa: F401
from tests.test_link_parts import SecureBroker
from tests.test_telemetry_samples import event, published, state

CLI = [sys.executable, "-m", "pipelines.cli"]


class EventPath:
    """Mosquitto as `jetloop broker config` makes it (TLS, certificates), bridge, Kafka, collector, store."""

    def __init__(self, folder: Path, broker: SecureBroker, server: KafkaServer) -> None:
        self.folder, self.broker, self.kafka = folder, broker, server
        for name in ("operator", "bridge", "bridge-1", "bridge-2"):
            broker.certificates.issue(name, 7)
        mosquitto.write(broker.certificates, folder / "mosquitto", "127.0.0.1", broker.port, "root")
        broker.reload()
        self.url = f"sqlite:///{folder / 'events.db'}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.robots = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="robots", clean_session=False)
        self.robots.max_inflight_messages_set(100)
        self.robots.tls_set_context(broker.context("operator"))
        self.robots.connect("127.0.0.1", broker.port)
        self.robots.loop_start()

    def run(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        log = self.folder / f"{name}.log"
        self.processes.append(start([*CLI, *arguments], log, cwd=ROOT))
        return self.processes[-1]

    def bridge(self, *arguments: str, name: str = "bridge") -> "subprocess.Popen[bytes]":
        before = self.log(name).count("connected to")
        own = self.folder / "certs" / "services" / name
        options = ["--mqtt", f"mqtts://127.0.0.1:{self.broker.port}", "--ca", str(self.folder / "certs" / "ca.pem")]
        options += ["--certificate", str(own / "certificate.pem"), "--key", str(own / "key.pem")]
        process = self.run(name, "bridge", *options, "--kafka", self.kafka.address, "--client-id", name, *arguments)
        wait_for(lambda: self.log(name).count("connected to") > before, what=f"{name} connected")
        return process

    def collect(self, name: str = "collector", static: bool = True) -> "subprocess.Popen[bytes]":
        before = self.log(name).count("reads jetloop")
        # The test server misses no dead member, so a static one comes back at once after a kill -9; and it ends no
        # cooperative rebalance, so two members divide the partitions the older way.
        option = f"group.instance.id={name}" if static else "partition.assignment.strategy=range"
        member = ("--kafka-option", option)
        process = self.run(name, "collector", "--kafka", self.kafka.address, "--store", self.url, *member)
        wait_for(lambda: self.log(name).count("reads jetloop") > before, what=f"{name} reading")
        return process

    def send(self, *messages: tuple[str, bytes]) -> None:
        for sent in [self.robots.publish(topic, payload, 1) for topic, payload in messages]:
            sent.wait_for_publish(30)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def store(self) -> Store:
        return open_reader(self.url)

    def wait_stored(self, count: int, timeout_s: float = 30.0) -> None:
        store = self.store()
        wait_for(lambda: store.count() >= count, timeout_s, what=f"{count} events stored")
        store.close()

    def consumed(self, kinds: tuple[str, ...], count: int) -> list[confluent_kafka.Message]:
        """The first `count` records of the topics."""
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": self.kafka.address, "group.id": "test", "auto.offset.reset": "earliest"}
        )
        found: list[confluent_kafka.Message] = []
        consumer.subscribe([f"jetloop.{kind}" for kind in kinds])

        def enough() -> bool:
            found.extend(one for one in consumer.consume(100, 0.2) if not one.error())
            return len(found) >= count

        try:
            wait_for(enough, what=f"{count} records in {kinds}")
        finally:
            consumer.close()
        return found

    def close(self) -> None:
        self.robots.disconnect()
        self.robots.loop_stop()
        for process in self.processes:
            end(process)


@pytest.fixture
def path(tmp_path: Path, kafka: KafkaServer) -> Iterator[EventPath]:
    broker = SecureBroker(tmp_path)
    made = None
    try:
        made = EventPath(tmp_path, broker, kafka)
        yield made
    finally:
        if made:
            made.close()
        broker.close()


def test_end_to_end_with_dead_letters(path: EventPath) -> None:
    """Events, metrics, states reach the store through Kafka, keyed by robot; what is none goes to `dead`, with why."""
    process = path.bridge()
    good = [published(event(n, "metrics" if n % 2 else "collision", robot=f"r{n % 3}")) for n in range(1, 31)]
    topic, payload = published(event(1, robot="r9"))
    rubbish = [
        (topic, b"no json"),
        (topic, b""),
        (topic.replace("r9", "r8"), payload),
        (topic, payload[:-2] + b" " * 80_000 + b"}}"),
    ]
    gone = (state_topic("lab", "r7"), b"")
    path.send(*good, published(state("r1")), published(state("r7")), gone, *rubbish)
    records = path.consumed(KINDS, len(good) + 3 + len(rubbish))
    keys = {one.key() for one in records if one.topic() != "jetloop.dead"}
    assert keys == {b"lab/r0", b"lab/r1", b"lab/r2", b"lab/r7"}
    for key in keys:  # one partition a robot, in order
        assert len({one.partition() for one in records if one.key() == key and one.topic() == "jetloop.events"}) < 2
    dead = [one for one in records if one.topic() == "jetloop.dead"]
    reasons = " | ".join(dict(one.headers())["reason"].decode() for one in dead)
    assert len(dead) == len(rubbish)
    for expected in ("malformed", "truncated", "`robot` is", "at most 65536"):
        assert expected in reasons
    assert {one.value() for one in records if one.key() == b"lab/r7"} > {None}  # taken off the broker
    path.collect()
    path.wait_stored(30)
    store = path.store()
    wait_for(lambda: len(store.rejected()) == len(rubbish), what="the dead letters in the store")
    wait_for(lambda: any(row["mode"] == "driving" for row in store.robots()), what="the state")
    assert "r7" not in {row["robot"] for row in store.robots()}
    end(process)
    assert process.returncode == 0
    assert f"ended: bridged 33, dead letters {len(rubbish)}" in path.log("bridge")


def test_kill_9_of_the_bridge_and_of_the_collector_loses_nothing(path: EventPath) -> None:
    """Both are killed in mid-flow: every event that the broker acknowledged is in the store, none twice."""
    first = path.bridge()
    collecting = path.collect()
    events = [published(event(n)) for n in range(1, 3001)]
    path.send(*events[:1000])
    for topic, payload in events[1000:2000]:  # on the way while the bridge dies
        path.robots.publish(topic, payload, 1)
    os.killpg(first.pid, signal.SIGKILL)
    os.killpg(collecting.pid, signal.SIGKILL)
    path.bridge()
    path.send(*events[2000:])
    path.collect()
    path.wait_stored(3000, timeout_s=60)
    assert path.store().count() == 3000
    assert path.store().gaps(from_first=True) == []


def test_kafka_down_for_a_while_keeps_the_messages_with_the_broker(path: EventPath) -> None:
    """The bridge holds no more than its window, says what is wrong, and passes everything on when Kafka is back."""
    process = path.bridge("--window", "50")
    path.send(published(event(1)))
    path.consumed(("events",), 1)
    before = psutil.Process(process.pid).memory_info().rss
    path.kafka.close()
    path.send(*(published(event(n, data={"text": "x" * 10_000})) for n in range(2, 3001)))
    wait_for(lambda: "has confirmed nothing for" in path.log("bridge"), what="the outage logged")
    assert psutil.Process(process.pid).memory_info().rss - before < 20 << 20  # of 30 MB that came
    path.kafka.begin()
    path.collect()
    path.wait_stored(3000, timeout_s=60)
    assert path.store().gaps(from_first=True) == []


def test_two_collectors_share_and_take_over(path: EventPath) -> None:
    """A second member of the group takes partitions over, and the first takes them back: nothing is lost or twice."""
    path.bridge()
    path.collect("one", static=False)
    events = [published(event(n, robot=f"r{n % 40}")) for n in range(1, 2001)]
    path.send(*events[:500])
    two = path.collect("two", static=False)
    wait_for(lambda: "gives back" in path.log("one"), what="partitions given back")
    path.send(*events[500:1000])
    end(two)
    path.send(*events[1000:])
    path.wait_stored(2000, timeout_s=60)
    assert path.store().count() == 2000


def test_bridges_divide_the_messages(path: EventPath) -> None:
    """Two bridges in one shared subscription each pass on a part, and together all."""
    for name in ("bridge-1", "bridge-2"):
        path.bridge("--share", "bridges", name=name)
    path.send(*(published(event(n)) for n in range(1, 301)))
    assert len({one.value() for one in path.consumed(("events",), 300)}) == 300
    for process in path.processes:
        end(process)
    counts = [int(path.log(name).split("ended: bridged ")[1].split(",")[0]) for name in ("bridge-1", "bridge-2")]
    assert sum(counts) == 300
    assert min(counts) > 50


def test_a_bridge_of_some_sites(path: EventPath) -> None:
    """With --site a bridge takes that site's robots alone."""
    path.bridge("--site", "lab")
    path.send(published(event(1, site="yard")), published(event(2)))
    (record,) = path.consumed(("events",), 1)
    assert record.key() == b"lab/jetbot-1"


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (bridge.command, ["--kafka-option", "acks=0"], "cannot be set: an event is acknowledged when all replicas"),
        (bridge.command, ["--kafka-option", "enable.idempotence=false"], "a retry must not write twice"),
        (bridge.command, ["--kafka-option", "nothing"], "is not KEY=VALUE"),
        (bridge.command, ["--kafka-option", "no.such=1"], "No such configuration property"),
        (bridge.command, ["--site", "a/b"], "is not letters"),
        (collector.command, ["--kafka", "h:1", "--mqtt", "h:2"], "an event takes one way"),
        (collector.command, ["--kafka", "h:1", "--kafka-option", "enable.auto.commit=true"], "offsets are committed"),
        (collector.command, ["--kafka", "h:1", "--ca", "ca.pem"], "ssl.ca.location"),
    ],
)
def test_what_would_break_the_guarantees_is_refused(
    command: object, arguments: list[str], expected: str, tmp_path: Path
) -> None:
    """Options that would lose events, or make no sense, end in one line that says why."""
    store = [] if command is bridge.command else ["--store", f"sqlite:///{tmp_path / 'e.db'}"]
    done = CliRunner().invoke(command, [*arguments, *store])  # type: ignore[arg-type]
    assert expected in str(done.exception)
    assert "\n" not in str(done.exception)
