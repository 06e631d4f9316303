"""`python -m tests.bench.telemetry`: events a second from robots to the store, as a share of what the broker carries.

In one run, on one machine: the broker alone with bare paho clients at QoS 1; robots → Mosquitto → collector → SQLite;
robots → Mosquitto → bridge → Kafka's protocol → collector → PostgreSQL. Then each way at half its load for the latency.
Rates are from the first to the last event's arrival in the store; latency is from `sentat`, set as the robot hands the
event to the broker, to `received_at`, set when its batch goes into the store: the commit, some ms, comes on top.
"""

import datetime
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import sqlalchemy as sa
from rich.progress import Progress

from serving.command_line import run
from serving.errors import OperatorError
from telemetry.store import open_reader, open_store
from tests.bench.telemetry_rig import (
    Mosquitto,
    Senders,
    Service,
    bridge,
    collector,
    drain,
    written,
)
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import Postgres

MIN_SHARE = {"sqlite": 0.5, "kafka_postgresql": 0.35}
MAX_P99_MS = 250.0
MAX_GROWTH_MB = 50.0  # of a service, from a fifth of the events to the end
STALL_S = 120.0
_LOOK_S = 0.25

Say = Callable[[str], None]


@dataclass
class Way:
    """A way into a store, running."""

    broker: Mosquitto
    services: list[Service]
    store: str


@contextmanager
def direct(folder: Path) -> Iterator[Way]:
    """Mosquitto, collector, SQLite."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        broker = Mosquitto(folder)
        stack.callback(broker.close)
        store = f"sqlite:///{folder / 'events.db'}"
        service = collector(folder, store, broker=broker.port)
        stack.callback(service.close)
        yield Way(broker, [service], store)


@contextmanager
def through_kafka(folder: Path, database: str) -> Iterator[Way]:
    """Mosquitto, bridge, Kafka's protocol, collector, the database of this URL; a PostgreSQL of its own if empty."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        if not database:
            postgres = Postgres("fsync=on")
            stack.callback(postgres.close)
            database = postgres.database()
        open_store(database).close()
        kafka = KafkaServer(folder / "kafka")
        stack.callback(kafka.close)
        kafka.begin()
        broker = Mosquitto(folder)
        stack.callback(broker.close)
        passing = bridge(folder, broker.port, kafka)
        stack.callback(passing.close)
        storing = collector(folder, database, kafka=kafka)
        stack.callback(storing.close)
        yield Way(broker, [passing, storing], database)


def broker_alone(folder: Path, events: int) -> float:
    """Events a second from bare senders to a bare subscriber."""
    folder.mkdir(parents=True)
    broker = Mosquitto(folder)
    try:
        context = multiprocessing.get_context("spawn")
        subscribed, told = context.Event(), context.Queue()
        senders = Senders(broker.port, events)
        total = events // senders.count * senders.count
        subscriber = context.Process(target=drain, args=(broker.port, "bare", total, subscribed, told), daemon=True)
        subscriber.start()
        subscribed.wait(30)
        senders.begin()
        count, seconds = told.get(timeout=STALL_S + events / 500)
        senders.tally(30)
        subscriber.join()
        return float(count / seconds)
    finally:
        broker.close()


def flat_out(way: Way, events: int) -> dict[str, Any]:
    """As fast as the senders can: the rate into the store, and the services' memory."""
    count = _pass(way, Senders(way.broker.port, events), STALL_S + events / 300)
    with _connected(way.store) as connection:
        first, last = connection.execute(sa.text("select min(received_at), max(received_at) from events")).one()
    seconds = (moment(last) - moment(first)) / np.timedelta64(1, "s")
    return {"events": count["events"], "events_per_s": round(count["events"] / seconds, 1), "memory": count["memory"]}


def half_load(way: Way, rate: float, seconds: float) -> dict[str, float]:
    """Latency of events sent at a steady rate."""
    _pass(way, Senders(way.broker.port, int(rate * seconds), rate=rate), STALL_S)
    with _connected(way.store) as connection:
        rows = connection.execute(sa.text("select sent_at, received_at from events order by id")).all()
    rows = rows[len(rows) // 10 :]  # without the start
    latency_ms = np.array([(moment(came) - moment(sent)) / np.timedelta64(1, "us") / 1000 for sent, came in rows])
    p50, p99 = np.percentile(latency_ms, (50, 99))
    return {"events_per_s": round(rate, 1), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}


def _pass(way: Way, senders: Senders, timeout_s: float) -> dict[str, Any]:
    """Sends all and waits until all are stored; memory is read at a fifth and at the end."""
    reader = open_reader(way.store)
    senders.begin()
    total = senders.events // senders.count * senders.count
    early: dict[str, float] = {}
    deadline = time.monotonic() + timeout_s
    while (stored := reader.count()) < total:
        if stored > total / 5 and not early:
            early = {one.name: one.rss_mb() for one in way.services}
        if time.monotonic() > deadline:
            raise OperatorError(f"only {stored} of {total} events were stored in {timeout_s:.0f} s")
        time.sleep(_LOOK_S)
    if senders.tally(60) != total or reader.count() != total:
        raise OperatorError("the senders' tally and the store disagree")
    reader.close()
    late = {one.name: one.rss_mb() for one in way.services}
    memory = {
        name: {"at_a_fifth_mb": round(early.get(name, late[name]), 1), "at_the_end_mb": round(late[name], 1)}
        for name in late
    }
    return {"events": total, "memory": memory}


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def moment(value: Any) -> np.datetime64:
    """SQLite gives text, PostgreSQL a datetime with an offset; both are UTC."""
    text = value if isinstance(value, str) else value.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(text, "us")


def measure(folder: Path, events: int, seconds: float, database: str, say: Say) -> dict[str, Any]:
    """Runs all parts.

    Args:
        folder: for everything that is written.
        events: of each flat-out part.
        seconds: of each half-load part.
        database: URL of a PostgreSQL database that may be filled; empty: one is started.
        say: told what is being measured.
    """
    say("the broker alone")
    alone = broker_alone(folder / "alone", events)
    result: dict[str, Any] = {"events": events, "broker_alone_events_per_s": round(alone, 1)}
    ways = {"sqlite": direct, "kafka_postgresql": lambda place: through_kafka(place, database)}
    for name, way in ways.items():
        say(f"{name}: flat out")
        with way(folder / name) as running:
            part = flat_out(running, events)
        part["share_of_broker_alone"] = round(part["events_per_s"] / alone, 3)
        say(f"{name}: half load")
        with way(folder / f"{name}-half") as running:
            part["half_load"] = half_load(running, part["events_per_s"] / 2, seconds)
        result[name] = part
    return result


def shortfalls(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = []
    for name, least in MIN_SHARE.items():
        part = result[name]
        if part["share_of_broker_alone"] < least:
            found.append(f"{name}: {part['share_of_broker_alone']} of the broker alone, wanted {least}")
        if part["half_load"]["p99_ms"] > MAX_P99_MS:
            found.append(f"{name}: p99 {part['half_load']['p99_ms']} ms at half load, wanted {MAX_P99_MS:g}")
        for service, memory in part["memory"].items():
            if memory["at_the_end_mb"] - memory["at_a_fifth_mb"] > MAX_GROWTH_MB:
                found.append(f"{name}: {service} grew from {memory['at_a_fifth_mb']} to {memory['at_the_end_mb']} MB")
    return found


@click.command()
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(100), help="Of each flat-out part.")
@click.option("--seconds", default=30.0, show_default=True, help="Of each half-load part.")
@click.option("--database", default="", help="URL of an empty PostgreSQL database.  [default: one of its own]")
@click.option("--measure-only", is_flag=True, help="Exit code 0 whatever the figures are.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/bench/telemetry.json"),
    show_default=True,
    help="Where the figures go.",
)
def command(events: int, seconds: float, database: str, measure_only: bool, target: Path) -> None:
    """Measures the event path against the broker alone. Needs Mosquitto and PostgreSQL, and a quiet machine.

    Exit code 1 when the share of the broker's own rate, the latency at half load, or the memory is not as it should be.

    Example: python -m tests.bench.telemetry --events 1000000 --seconds 60
    """
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("starting", total=None)
        result = measure(Path(folder), events, seconds, database, lambda what: bar.update(task, description=what))
    click.echo(written(target, result))
    missing = shortfalls(result)
    if missing and not measure_only:
        raise OperatorError(f"{'; '.join(missing)} ({target})")


if __name__ == "__main__":
    run(command)
