"""What bench-telemetry and chaos-telemetry share: a broker, senders in processes of their own, services, a count.

The senders are bare paho clients, QoS 1, each several robots; what the broker acknowledged of them is their tally.
"""

import collections
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from serving.contracts.events import Event, event_topic, utc_now, uuid7
from serving.errors import OperatorError
from tests.conftest import ROOT, end, free_port, listens, need, start, wait_for
from tests.servers.kafka import KafkaServer

CLI = [sys.executable, "-m", "pipelines.cli"]
IN_FLIGHT = 100  # of a sender
_CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages {window}
max_packet_size 131072
persistence true
persistence_location {state}/
autosave_on_changes false
autosave_interval 1
log_type error
"""


class Mosquitto:
    """The lines of `jetloop broker config` that matter for speed and durability, without TLS."""

    def __init__(self, folder: Path, window: int = 1000) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "state").mkdir(parents=True, exist_ok=True)
        user = f"user {os.environ.get('USER', 'root')}\n" if os.getuid() == 0 else ""
        text = _CONFIGURATION.format(port=self.port, state=folder / "state", window=window) + user
        (folder / "mosquitto.conf").write_text(text)
        self.begin()

    def begin(self) -> None:
        command = [need("mosquitto"), "-c", str(self.folder / "mosquitto.conf")]
        self.process = start(command, self.folder / "mosquitto.log")
        wait_for(lambda: listens(self.port), what="Mosquitto listening")

    def saves(self) -> Callable[[], bool]:
        """Tells whether its state was written since this call."""
        since = time.time()
        database = self.folder / "state" / "mosquitto.db"
        return lambda: database.exists() and database.stat().st_mtime > since

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        end(self.process)


def event(site: str, robot: str, sequence: int) -> Event:
    """An event as robots send them: about 450 bytes."""
    now = utc_now()
    return Event(
        id=uuid7(), source=f"/jetloop/{site}/{robot}", type="avoidance.started", time=now, site=site, robot=robot,
        session="bench", sequence=sequence, release="v3-abababababab", engine="3f" * 32, sentat=now,
        data={"p_blocked": 0.93, "latency_ms": 21.4, "action": "left"},
    )  # fmt: skip


def send(port: int, number: int, robots: int, events: int, rate: float, settle_s: float, told: Any) -> None:
    """A sender's process: publishes, comes back after a broken connection, and tells (acknowledged, seconds).

    Args:
        number: of this sender; its robots are named after it.
        robots: that it speaks for, in turn.
        events: to send, over all robots.
        rate: events a second; 0: as fast as the broker acknowledges.
        settle_s: what was acknowledged so shortly before the connection broke is sent again, as robots do.
        told: a queue, for the tally.
    """
    begun = time.monotonic()
    waiting: dict[int, int] = {}  # mid -> index, not acknowledged
    settling: collections.deque[tuple[float, int]] = collections.deque()  # when it was acknowledged, index
    again: list[int] = []  # to send anew
    ids: dict[int, Event] = {}  # of what is not settled
    acknowledged: set[int] = set()

    def acknowledge(_client: paho.Client, _data: object, mid: int, *_: object) -> None:
        index = waiting.pop(mid, None)
        if index is not None:
            acknowledged.add(index)
            settling.append((time.monotonic(), index))

    client, upto = None, 0
    while upto < events or waiting or again or settling or client is None:
        if client is None or client.socket() is None:
            again = sorted({*again, *waiting.values(), *(index for _, index in settling)})
            waiting.clear()
            settling.clear()
            client = _connected(port, number, acknowledge)
        now = time.monotonic()
        while settling and now - settling[0][0] >= settle_s:
            ids.pop(settling.popleft()[1], None)
        while len(waiting) < IN_FLIGHT and (again or upto < events):
            if not again and rate and upto > (now - begun) * rate:
                break
            index = again.pop(0) if again else upto
            upto = max(upto, index + 1)
            one = ids.get(index)
            if one is None:
                one = ids[index] = event(f"site{number}", f"r{index % robots}", index // robots + 1)
            stamped = msgspec.structs.replace(one, sentat=utc_now())
            sent = client.publish(event_topic(one.site, one.robot, one.type), msgspec.json.encode(stamped), 1)
            if sent.rc:
                again.append(index)
                break
            waiting[sent.mid] = index
        client.loop(0.001 if rate else 0.0005)
    told.put((len(acknowledged), time.monotonic() - begun))
    client.disconnect()


def _connected(port: int, number: int, on_publish: Callable[..., None]) -> paho.Client:
    while True:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"sender-{number}", reconnect_on_failure=False)
        client.max_inflight_messages_set(IN_FLIGHT + 1)
        accepted: list[bool] = []
        client.on_connect = lambda *given, to=accepted: to.append(not given[3].is_failure)
        client.on_publish = on_publish
        try:
            client.connect("127.0.0.1", port)
            deadline = time.monotonic() + 5
            while not accepted and client.socket() is not None and time.monotonic() < deadline:
                client.loop(0.1)
        except OSError:
            time.sleep(0.1)
        if accepted and accepted[0]:
            return client


def drain(port: int, client_id: str, total: int, subscribed: Signal, told: Any) -> None:
    """A bare subscriber's process: QoS 1, persistent, counts `total` messages and tells the seconds it took."""
    count, first = 0, 0.0

    def hear(*_: object) -> None:
        nonlocal count, first
        first = first or time.monotonic()
        count += 1

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
    client.on_connect = lambda *_: client.subscribe([("jetloop/v1/+/+/event/+", 1)])
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = hear
    client.connect("127.0.0.1", port)
    while count < total:
        client.loop(0.1)
    told.put((count, time.monotonic() - first))
    client.disconnect()


@dataclass
class Senders:
    """Sender processes, and what they tell."""

    port: int
    events: int
    count: int = 2
    robots: int = 50  # each
    rate: float = 0.0  # of all together
    settle_s: float = 0.0
    processes: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._told = context.Queue()
        share = self.events // self.count
        for number in range(self.count):
            given = (self.port, number, self.robots, share, self.rate / self.count, self.settle_s, self._told)
            self.processes.append(context.Process(target=send, args=given, daemon=True))
            self.processes[-1].start()

    def tally(self, timeout_s: float) -> int:
        """How many events the broker acknowledged."""
        acknowledged = sum(self._told.get(timeout=timeout_s)[0] for _ in self.processes)
        for process in self.processes:
            process.join()
        return int(acknowledged)


class Service:
    """A command of jetloop as a process, that can be killed and started again."""

    def __init__(self, folder: Path, name: str, ready: str, *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        self.name, self._ready, self._command = name, ready, [*CLI, *arguments]
        self.begin()

    def begin(self, wait: bool = True) -> None:
        before = self._count()
        self.process = start(self._command, self.log, cwd=ROOT)
        if wait:
            wait_for(lambda: self._count() > before, 60, what=f"{self.name} ({self.log})")

    def rss_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        end(self.process)

    def _count(self) -> int:
        return self.log.read_text().count(self._ready) if self.log.exists() else 0


def collector(folder: Path, store: str, *, broker: int = 0, kafka: KafkaServer | None = None) -> Service:
    """The collector on MQTT or on Kafka."""
    if kafka is None:
        where = ["--mqtt", f"127.0.0.1:{broker}"]
        return Service(folder, "collector", "connected to", "collector", *where, "--store", store)
    where = ["--kafka", kafka.address, "--kafka-option", "group.instance.id=one"]
    return Service(folder, "collector", "reads jetloop", "collector", *where, "--store", store)


def bridge(folder: Path, broker: int, kafka: KafkaServer) -> Service:
    """The bridge between both, with a spool for who floods."""
    where = ["--mqtt", f"127.0.0.1:{broker}", "--kafka", kafka.address, "--spool", str(folder / "spool")]
    return Service(folder, "bridge", "connected to", "bridge", *where)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Raises OperatorError: it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise OperatorError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.02)


def written(target: Path, result: dict[str, Any]) -> str:
    """Writes the figures, and gives them as text."""
    text = json.dumps(result, indent=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n")
    return text
