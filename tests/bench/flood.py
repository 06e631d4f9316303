"""`python -m tests.bench.flood`: one robot floods; how long do the events of the others take to the store?

Nine robots send 2 events a second each while a tenth publishes at QoS 1 as fast as the broker acknowledges: first by
one connection, then by three at once. Latency is from `sentat` to `received_at`, as in bench-telemetry. What the broker
has acknowledged and the store has not is what waits: at the broker, in the collector's spool, or in between.
"""

import datetime
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import paho.mqtt.client as paho
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion
from rich.progress import Progress

from serving.command_line import run
from serving.contracts.events import event_topic, utc_now, uuid7
from serving.errors import OperatorError
from tests.bench.telemetry import Way, direct, moment, through_kafka
from tests.bench.telemetry_rig import IN_FLIGHT, event, wait_until, written

SITE, FLOODER = "bench", "flooder"
OTHERS, OTHERS_PER_S = 9, 2.0  # robots, events a second each
MAX_P99_MS = 1000.0  # of the others
DRAIN_S = 240.0  # for all that waits at the end
_LOOK_S = 0.5

Say = Callable[[str], None]


def flood(port: int, number: int, stop: Signal, acknowledged: Any) -> None:
    """A process: the robot that floods, by one of its connections, until `stop`; then waits for what is in flight.

    Args:
        port: of the broker.
        number: of the connection.
        stop: when to end.
        acknowledged: a shared counter of this connection alone.
    """
    client = _connected(port, f"{FLOODER}-{number}")
    in_flight = 0

    def acknowledge(*_: object) -> None:
        nonlocal in_flight
        in_flight -= 1
        acknowledged.value += 1

    client.on_publish = acknowledge
    one = event(SITE, FLOODER, 1)
    topic = event_topic(SITE, FLOODER, one.type)
    for sequence in itertools.count(number * 10**9 + 1):
        if stop.is_set():
            break
        while in_flight >= IN_FLIGHT:
            client.loop(0.01)
        fresh = msgspec.structs.replace(one, id=uuid7(), sequence=sequence, sentat=utc_now())
        client.publish(topic, msgspec.json.encode(fresh), 1)
        in_flight += 1
    while in_flight:
        client.loop(0.01)
    client.disconnect()


def others(port: int, stop: Signal, acknowledged: Any) -> None:
    """A process: the robots that do not flood, each with a connection of its own, one after the other in time."""
    clients = [_connected(port, f"r{number}") for number in range(OTHERS)]
    waiting = [0]

    def acknowledge(*_: object) -> None:
        waiting[0] -= 1
        acknowledged.value += 1

    for client in clients:
        client.on_publish = acknowledge
        client.loop_start()
    begun, period_s = time.monotonic(), 1 / (OTHERS * OTHERS_PER_S)
    for count in itertools.count():
        if stop.wait(max(0.0, begun + count * period_s - time.monotonic())):
            break
        one = event(SITE, f"r{count % OTHERS}", count // OTHERS + 1)
        waiting[0] += 1
        clients[count % OTHERS].publish(event_topic(SITE, one.robot, one.type), msgspec.json.encode(one), 1)
    deadline = time.monotonic() + DRAIN_S
    while waiting[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    for client in clients:
        client.disconnect()
        client.loop_stop()


def _connected(port: int, name: str) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, reconnect_on_failure=False)
    client.max_inflight_messages_set(IN_FLIGHT + 1)
    client.connect("127.0.0.1", port)
    return client


@dataclass
class Crowd:
    """The processes that publish, and what the broker acknowledged to them."""

    port: int
    processes: list[Any] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()

    def add(self, target: Callable[..., None], *given: Any) -> None:
        self.counts.append(self._context.Value("q", 0, lock=False))  # one process writes it
        arguments = (self.port, *given, self._stop, self.counts[-1])
        self.processes.append(self._context.Process(target=target, args=arguments, daemon=True))
        self.processes[-1].start()

    def acknowledged(self) -> int:
        return sum(count.value for count in self.counts)

    def end(self) -> None:
        self._stop.set()
        for process in self.processes:
            process.join(DRAIN_S)
            if process.is_alive() or process.exitcode:
                process.kill()
                raise OperatorError("a sender did not end: its messages were not acknowledged")


def under_flood(way: Way, connections: int, seconds: float) -> dict[str, Any]:
    """The others first alone, for a third of the time, then beside the flood; then all that waits is let through."""
    engine = sa.create_engine(way.store)
    crowd = Crowd(way.broker.port)
    crowd.add(others)
    wait_until(lambda: crowd.acknowledged() >= OTHERS, 30, "the first events")
    time.sleep(seconds / 3)
    began = utc_now()
    before = crowd.acknowledged()
    for number in range(connections):
        crowd.add(flood, number)
    wait_until(lambda: crowd.acknowledged() > before + 500, 30, "the flood")
    at, waits = time.monotonic(), []
    while time.monotonic() - at < seconds:
        time.sleep(_LOOK_S)
        waits.append(crowd.acknowledged() - _stored(engine))
    rate = (crowd.acknowledged() - before) / (time.monotonic() - at)
    ended = utc_now()
    crowd.end()
    total = crowd.acknowledged()
    draining = time.monotonic()
    # Numbers may be left out, so the count decides.
    wait_until(lambda: _stored(engine) >= total <= _counted(engine), DRAIN_S, f"the last of {total} events")
    result = {
        "connections": connections,
        "acknowledged_events_per_s": round(rate),
        "acknowledged": total,
        "lost": total - _counted(engine),
        "waiting_at_half": waits[len(waits) // 2],
        "waiting_at_the_end": waits[-1],
        "drained_in_s": round(time.monotonic() - draining, 1),
        "others_before": _latency(engine, None, began),
        "others": _latency(engine, began, ended),
        "flooder": _latency(engine, began, ended, FLOODER),
    }
    engine.dispose()
    return result


def _stored(engine: sa.Engine) -> int:
    """By the store's own numbering: counting a million rows twice a second would disturb what is measured."""
    with engine.connect() as connection:
        return int(connection.execute(sa.text("select coalesce(max(position), 0) from events")).scalar_one())


def _counted(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text("select count(*) from events")).scalar_one())


def _latency(
    engine: sa.Engine, since: datetime.datetime | None, until: datetime.datetime, robot: str = ""
) -> dict[str, float]:
    """Of the events that were sent in a span of time, the flooder's or all the others'."""
    chosen = "robot = :robot" if robot else "robot <> :robot"
    query = sa.text(f"select sent_at, received_at from events where {chosen}")
    with engine.connect() as connection:
        rows = connection.execute(query, {"robot": robot or FLOODER}).all()
    pairs = [(moment(sent), moment(came)) for sent, came in rows]
    first, last = moment(since or datetime.datetime.min.replace(tzinfo=datetime.UTC)), moment(until)
    ms = np.array([(came - sent) / np.timedelta64(1, "us") / 1000 for sent, came in pairs if first <= sent < last])
    if not len(ms):
        raise OperatorError("no event was sent in the time that is looked at: give more --seconds")
    p50, p99, most = np.percentile(ms, (50, 99, 100))
    return {"events": len(ms), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": round(most, 1)}


def measure(
    folder: Path, floods: Iterable[int], seconds: float, kafka: bool, database: str, say: Say
) -> list[dict[str, Any]]:
    """Each number of connections on a fresh broker and store."""
    results = []
    for connections in floods:
        say(f"a flood by {connections} connections")
        place = folder / str(connections)
        with through_kafka(place, database) if kafka else direct(place) as way:
            results.append(under_flood(way, connections, seconds))
    return results


def shortfalls(results: list[dict[str, Any]]) -> list[str]:
    """What is not as it should be."""
    found = []
    for one in results:
        name = f"{one['connections']} connections"
        if one["others"]["p99_ms"] > MAX_P99_MS:
            found.append(f"{name}: the others' p99 is {one['others']['p99_ms']:g} ms, wanted {MAX_P99_MS:g}")
        if one["lost"]:
            found.append(f"{name}: {one['lost']} acknowledged events are not in the store")
    return found


@click.command()
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1), help="Of each flood.")
@click.option(
    "--connections", default=(1, 3), multiple=True, show_default=True, type=click.IntRange(1), help="Of the flooder."
)
@click.option("--kafka", is_flag=True, help="By bridge, Kafka's protocol and PostgreSQL instead of straight to SQLite.")
@click.option("--database", default="", help="With --kafka: URL of an empty PostgreSQL.  [default: one of its own]")
@click.option("--measure-only", is_flag=True, help="Exit code 0 whatever the figures are.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/bench/flood.json"),
    show_default=True,
    help="Where the figures go.",
)
def command(
    connections: tuple[int, ...], seconds: float, kafka: bool, database: str, measure_only: bool, target: Path
) -> None:
    """Measures what a robot that floods does to the others. Needs Mosquitto, with --kafka PostgreSQL.

    Exit code 1 when the others wait longer than they should (p99), or something is lost.

    Example: python -m tests.bench.flood --seconds 30
    """
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("starting", total=None)
        results = measure(
            Path(folder), connections, seconds, kafka, database, lambda what: bar.update(task, description=what)
        )
    click.echo(written(target, {"way": "kafka_postgresql" if kafka else "sqlite", "floods": results}))
    missing = shortfalls(results)
    if missing and not measure_only:
        raise OperatorError(f"{'; '.join(missing)} ({target})")


if __name__ == "__main__":
    run(command)
