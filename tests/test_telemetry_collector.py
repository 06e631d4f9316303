"""The collector as a process, against Mosquitto and against the embedded broker."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from pipelines.release.wakeup import Bell
from serving.contracts.events import Event, wakeup_topic
from serving.errors import OperatorError
from telemetry import mosquitto as mosquitto_files
from telemetry.mqtt_options import parse_broker
from telemetry.store import Store, open_reader
from tests.conftest import ROOT, Address, end, free_port, listens, start, wait_for
from tests.test_link_parts import SecureBroker, channel_of
from tests.test_telemetry_samples import event, published, state

CLI = [sys.executable, "-m", "pipelines.cli"]


class Bench:
    """A collector process over one store, and a publisher."""

    def __init__(self, folder: Path, port: int) -> None:
        self.log = folder / "collector.log"
        self.path = folder / "events.db"
        self.url = f"sqlite:///{self.path}"
        self.port = port
        self.processes: list[subprocess.Popen[bytes]] = []
        self._publisher: mqtt.Client | None = None

    def collect(self, connected: bool = True) -> "subprocess.Popen[bytes]":
        before = self.text().count("connected to")
        command = [*CLI, "collector", "--mqtt", f"127.0.0.1:{self.port}", "--store", self.url]
        self.processes.append(start(command, self.log, cwd=ROOT))
        if connected:
            wait_for(lambda: self.text().count("connected to") > before, what="the collector connected")
        return self.processes[-1]

    @property
    def publisher(self) -> mqtt.Client:
        if self._publisher is None:
            version = mqtt.CallbackAPIVersion.VERSION2  # type: ignore[attr-defined]
            self._publisher = mqtt.Client(version, client_id="robots", clean_session=False)
            self._publisher.connect("127.0.0.1", self.port)
            self._publisher.loop_start()
        return self._publisher

    def send(self, *messages: tuple[str, bytes]) -> None:
        """Publishes and waits until the broker has them."""
        wait_for(self.publisher.is_connected, what="the publisher connected")
        for sent in [self.publisher.publish(topic, payload, 1) for topic, payload in messages]:
            sent.wait_for_publish(20)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def store(self) -> Store:
        return open_reader(self.url)

    def wait_stored(self, count: int) -> None:
        store = self.store()
        wait_for(lambda: store.count() >= count, what=f"{count} events stored ({self.log})")
        store.close()

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.disconnect()
            self._publisher.loop_stop()
        for process in self.processes:
            end(process)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Address]:
    port = free_port()
    process = start([*CLI, "broker", "--port", str(port)], tmp_path / "broker.log", cwd=ROOT)
    try:
        wait_for(lambda: listens(port), what="the embedded broker listening")
        yield Address("127.0.0.1", port)
    finally:
        end(process)


@pytest.fixture(params=["mosquitto", "embedded"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A bench on each of the two brokers."""
    made = Bench(tmp_path, request.getfixturevalue(request.param).port)
    try:
        yield made
    finally:
        made.close()


def _events(count: int) -> list[Event]:
    return [event(n, "metrics" if n % 5 == 0 else "collision") for n in range(1, count + 1)]


def test_stored_once_and_refused_with_the_reason(bench: Bench) -> None:
    """Of events, copies and rubbish, each event is stored once and each piece of rubbish is kept with its reason."""
    process = bench.collect()
    events = _events(60)
    good = [published(one) for one in events]
    topic, payload = good[0]
    rubbish = [
        (topic, b"not json"),
        (topic, b"\xff\xfe"),
        (topic, b"{}"),
        (topic, payload[:-2] + b" " * 80_000 + b"}}"),
        (topic.replace("jetbot-1", "jetbot-2"), payload),
        (topic.replace("collision", "intervention"), payload),
    ]
    bench.send(published(state()), *good, *rubbish, *good[:25])
    bench.wait_stored(60)
    end(process)  # commits what came, and says what it did
    assert process.returncode == 0
    assert "ended: stored 60, duplicates 25, rejected 6" in bench.text()
    store = bench.store()
    assert {row["id"] for row in store.recent(1000)} == {one.id for one in events}
    assert store.gaps(from_first=True) == []
    reasons = " | ".join(row["reason"] for row in store.rejected())
    for expected in ("malformed", "missing required field", "at most 65536", "`robot` is", "`type` is"):
        assert expected in reasons
    assert len(store.rejected()) == 6
    assert store.robots()[0]["mode"] == "driving"


def test_kill_9_in_the_stream_loses_nothing(bench: Bench) -> None:
    """The collector is killed twice while events flow: all are stored, none twice, and no sequence is missing."""
    events = _events(600)
    first = bench.collect()

    def publish() -> None:
        for one in events:
            bench.publisher.publish(*published(one), 1)
            time.sleep(0.002)  # a stream, not one burst

    stream = threading.Thread(target=publish)
    stream.start()
    bench.wait_stored(100)
    os.killpg(first.pid, signal.SIGKILL)
    second = bench.collect()
    bench.wait_stored(250)
    os.killpg(second.pid, signal.SIGKILL)
    stream.join()
    third = bench.collect()
    bench.wait_stored(600)
    end(third)
    store = bench.store()
    assert store.count() == 600
    assert store.gaps(from_first=True) == []


def test_a_broker_that_comes_late_and_goes_is_waited_for(tmp_path: Path) -> None:
    """No broker at the start, and later none for a while: each is a logged retry, and then events are stored."""
    bench = Bench(tmp_path, free_port())
    broker_command = [*CLI, "broker", "--port", str(bench.port)]
    broker = None
    try:
        collector = bench.collect(connected=False)
        wait_for(lambda: "no broker at" in bench.text(), what="the logged retry")
        for round_ in (1, 2):
            broker = start(broker_command, tmp_path / "broker.log", cwd=ROOT)
            wait_for(lambda: bench.text().count("connected to") == round_, what="the collector connected")  # noqa: B023
            wait_for(lambda: listens(bench.port), what="the broker listening")
            bench.send(published(event(round_)))
            bench.wait_stored(round_)
            end(broker)
            assert collector.poll() is None
        wait_for(lambda: bench.text().count("the connection to the broker") == 2, what="the lost connections logged")
        assert "Traceback" not in bench.text()
    finally:
        bench.close()
        if broker is not None:
            end(broker)


def test_what_comes_before_the_first_collector_waits_for_it(embedded: Address, tmp_path: Path) -> None:
    """The embedded broker keeps events for a collector that has never connected yet."""
    bench = Bench(tmp_path, embedded.port)
    try:
        bench.send(published(state()), *(published(one) for one in _events(40)))
        bench.collect()
        bench.wait_stored(40)
        assert "was not kept" not in bench.text()
    finally:
        bench.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_store_that_fails_for_a_while_loses_nothing(mosquitto: Address, tmp_path: Path, killed: bool) -> None:
    """While the store refuses, nothing is acknowledged, so not even kill -9 then loses what the broker has."""
    bench = Bench(tmp_path, mosquitto.port)
    try:
        collector = bench.collect()
        bench.send(published(event(1)))
        bench.wait_stored(1)
        with sqlite3.connect(bench.path) as connection:
            connection.execute("alter table events rename to hidden")
        bench.send(*(published(event(n)) for n in range(2, 60)))
        wait_for(lambda: "nothing is acknowledged until it does" in bench.text(), what="the failing store logged")
        if killed:
            os.killpg(collector.pid, signal.SIGKILL)
        with sqlite3.connect(bench.path) as connection:
            connection.execute("alter table hidden rename to events")
        if killed:
            bench.collect()
        bench.wait_stored(59)
        assert bench.store().gaps(from_first=True) == []
    finally:
        bench.close()


def test_what_came_while_the_collector_was_away_is_stored(mosquitto: Address, tmp_path: Path) -> None:
    """The broker keeps events for the collector's name, so a restart for an update costs nothing."""
    bench = Bench(tmp_path, mosquitto.port)
    try:
        end(bench.collect())
        bench.send(*(published(one) for one in _events(50)))
        bench.collect()
        bench.wait_stored(50)
    finally:
        bench.close()


def test_collector_and_wake_up_over_tls(tmp_path: Path) -> None:
    """With certificates of `jetloop broker certs` the collector stores, and the release service wakes robots."""
    broker = SecureBroker(tmp_path)
    bench, bell = Bench(tmp_path, broker.port), None
    try:
        for name in ("releases", "operator"):
            broker.certificates.issue(name, 7)
        mosquitto_files.write(broker.certificates, tmp_path / "mosquitto", "127.0.0.1", broker.port, "root")
        broker.reload()
        files = _files(broker, "collector")
        command = [*CLI, "collector", "--mqtt", f"mqtts://127.0.0.1:{broker.port}", "--store", bench.url]
        bench.processes.append(
            start([*command, *(part for name in files for part in (f"--{name}", files[name]))], bench.log, cwd=ROOT)
        )
        wait_for(lambda: "connected to" in bench.text(), what="the collector connected")
        robot = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="operator")  # type: ignore[attr-defined]
        robot.tls_set_context(broker.context("operator"))
        heard: list[str] = []
        robot.on_message = lambda *given: heard.append(given[2].topic)
        robot.connect("127.0.0.1", broker.port)
        robot.loop_start()
        robot.subscribe(wakeup_topic("champion"), 1)
        for number in range(1, 21):
            robot.publish(*published(event(number)), 1).wait_for_publish(10)
        bench.wait_stored(20)
        bell = Bell(parse_broker(f"mqtts://127.0.0.1:{broker.port}", **_files(broker, "releases")))
        bell.ring(channel_of(3, 1))
        bell.start()
        wait_for(lambda: heard == [wakeup_topic("champion")], what="the wake-up")
        robot.disconnect()
        robot.loop_stop()
    finally:
        if bell:
            bell.stop()
        bench.close()
        broker.close()


def _files(broker: SecureBroker, name: str) -> dict[str, str]:
    place = broker.certificates.place(name)
    own = {"certificate": str(place / "certificate.pem"), "key": str(place / "key.pem")}
    return {"ca": str(broker.certificates.folder / "ca.pem"), **own}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--store", "sqlite:////proc/nothing/events.db"], "give another --store"),
        (["--mqtt", "host:port"], "is not HOST:PORT"),
    ],
)
def test_wrong_settings_are_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    """A store that cannot be made or an address that is none ends in one line with what to do."""
    store = [] if "--store" in arguments else ["--store", f"sqlite:///{tmp_path / 'e.db'}"]
    done = subprocess.run([*CLI, "collector", *arguments, *store], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_addresses() -> None:
    """HOST, HOST:PORT, [IPv6]:PORT and mqtts:// are understood; files of certificates ask for TLS."""

    def place(text: str, **files: str) -> tuple[str, int, bool]:
        broker = parse_broker(text, **files)
        return broker.host, broker.port, broker.tls

    assert place("broker.lab") == ("broker.lab", 1883, False)
    assert place("broker.lab:8883") == ("broker.lab", 8883, False)
    assert place("mqtt://10.0.0.1:1884") == ("10.0.0.1", 1884, False)
    assert place("mqtts://10.0.0.1") == ("10.0.0.1", 8883, True)
    assert place("broker.lab", ca="ca.pem") == ("broker.lab", 8883, True)
    assert place("[::1]:1883") == ("::1", 1883, False)
    assert parse_broker("mqtts://robots@broker.lab").username == "robots"
    for wrong in ("", ":1883", "host:0", "host:70000", "host:1883x", "http://host:1883", "host:"):
        with pytest.raises(OperatorError, match="is not HOST:PORT"):
            parse_broker(wrong)
    for wrong, files, why in (
        ("mqtts://me:secret@host", {}, "JETLOOP_MQTT_PASSWORD"),
        ("mqtts://host", {"certificate": "c.pem"}, "go together"),
        ("mqtt://host", {"ca": "c.pem"}, "write mqtts://"),
    ):
        with pytest.raises(OperatorError, match=why):
            parse_broker(wrong, **files)
