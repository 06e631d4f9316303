"""/metrics of the telemetry's services, in Prometheus' format, on a port of its own: `--metrics-port`.

Two kinds. `CollectorMetrics` are counted by the collector while it works. `FleetMetrics` are asked of the store when
Prometheus asks: what the robots last said, robot by robot, and the sums of the last hours; one collector or console
serves them, else every robot counts twice. The rules and the dashboard that use them are in deploy/.
"""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.contracts.events import EVENT_TYPES, Event, utc_now
from serving.errors import JetloopError, OperatorError

log = logging.getLogger("jetloop.metrics")

RECENT_H = 2  # hours of the robots' clocks that the sums cover: the one under way and the one before
_KEEP_S = 5.0  # what the store said answers again for so long: two servers may ask, and people reload
_BATCH_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SUMS = ("events", "avoidances", "collisions", "interventions", "went_back", "decisions", "blocked")


class CollectorMetrics:
    """What a collector does. Counted by its thread, read by the server's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"jetloop_collector_{name}", text, labels, registry=registry)

        self._stored = counter("events_stored", "Events stored, each once.")
        self._duplicates = counter("duplicates", "Events that were stored already.")
        self._rejected = counter("rejected", "Messages that were no event; in the table `rejected`, with the reason.")
        self._received = counter("events", "Events taken by type, duplicates included.", "type")
        self._batch_s = Histogram(
            "jetloop_collector_batch_seconds",
            "Of the commit of one batch.",
            buckets=_BATCH_BOUNDS_S,
            registry=registry,
        )
        self._depth = Gauge("jetloop_collector_queue_depth", "Messages received, not yet committed.", registry=registry)
        self._last_at = Gauge(
            "jetloop_collector_last_event_timestamp_seconds", "When an event was stored last.", registry=registry
        )
        for kind in EVENT_TYPES:
            self._received.labels(type=kind)  # a series begins at 0, or its first increase is not seen

    def watch(self, waiting: Callable[[], int]) -> None:
        """Asks for the messages that wait whenever Prometheus asks."""
        self._depth.set_function(waiting)

    def committed(self, events: Iterable[Event], stored: int, duplicates: int, rejected: int, taken_s: float) -> None:
        """One batch is in the store."""
        self._stored.inc(stored)
        self._duplicates.inc(duplicates)
        self._rejected.inc(rejected)
        self._batch_s.observe(taken_s)
        for event in events:
            # A robot may send types of any name; a series for each would let one robot fill Prometheus.
            self._received.labels(type=event.type if event.type in EVENT_TYPES else "other").inc()
        if stored:
            self._last_at.set(time.time())


class FleetMetrics(Collector):
    """What the store knows of the fleet, asked when Prometheus asks."""

    def __init__(self, store_url: str) -> None:
        self._url = store_url
        self._kept: tuple[float, list[Metric]] = (0.0, [])

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks nothing of the store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families; without a store that answers, only `jetloop_store_up` 0: no zeros that pass for readings."""
        at, kept = self._kept
        if not kept or time.monotonic() - at > _KEEP_S:
            kept = list(self._ask())
            self._kept = (time.monotonic(), kept)
        yield from kept

    def _ask(self) -> Iterator[Metric]:
        from telemetry.store import open_reader

        up = GaugeMetricFamily("jetloop_store_up", "Whether the event store answers.")
        try:
            store = open_reader(self._url)
            try:
                now = utc_now()
                robots = store.robots()
                sums = store.rollups(now - datetime.timedelta(hours=RECENT_H - 1))
            finally:
                store.close()
        except JetloopError as problem:
            log.warning("the fleet's metrics are missing: %s", problem)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _of_robots(robots, now)
        yield from _of_releases(sums)


def _of_robots(robots: Iterable[Mapping[str, Any]], now: datetime.datetime) -> Iterator[Metric]:
    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"jetloop_fleet_{name}", text, labels=["site", "robot"])

    online = family("robot_online", "1: its state says so; 0: it said goodbye, or the broker lost it.")
    silent = family("robot_silent_seconds", "Since anything was heard of a robot that is online.")
    outbox = family("robot_outbox_events", "Events that wait on the robot, by its last state.")
    celsius = family("robot_temperature_celsius", "By its last state.")
    latency = family("robot_latency_p99_seconds", "Of its last metrics.")
    for row in robots:
        key = [row["site"], row["robot"]]
        online.add_metric(key, float(bool(row["online"])))
        if not row["online"]:
            continue  # old figures would pass for present ones
        silent.add_metric(key, max(0.0, (now - row["seen_at"]).total_seconds()))
        outbox.add_metric(key, row["outbox_depth"])
        if row["temperature_c"] is not None:
            celsius.add_metric(key, row["temperature_c"])
        value = (row["metrics"] or {}).get("latency_p99_ms")
        if isinstance(value, int | float):
            latency.add_metric(key, value / 1e3)
    yield from (online, silent, outbox, celsius, latency)


def _of_releases(rows: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    sums: dict[str, dict[str, int]] = {}
    for row in rows:
        one = sums.setdefault(str(row["release"]), dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            one[name] += int(row[name])
    for name in _SUMS:
        text = f"{name}, by release, of the hour under way and the one before."
        family = GaugeMetricFamily(f"jetloop_fleet_recent_{name}", text, labels=["release"])
        for release, one in sums.items():
            family.add_metric([release], one[name])
        yield family


class BridgeMetrics(Collector):
    """What a bridge has done, asked when Prometheus asks.

    Args:
        counts: messages bridged, and dead letters.
    """

    def __init__(self, counts: Callable[[], tuple[int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        bridged, dead = self._counts()
        yield CounterMetricFamily("jetloop_bridge_messages", "Messages that Kafka has.", value=bridged)
        yield CounterMetricFamily("jetloop_bridge_dead_letters", "Messages that were no event.", value=dead)


def new_registry(store_url: str = "") -> CollectorRegistry:
    """A registry with the process' own figures, and with the fleet's where a store is given."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    if store_url:
        registry.register(FleetMetrics(store_url))
    return registry


def serve_metrics(registry: CollectorRegistry, port: int, host: str = "127.0.0.1") -> None:
    """Serves http://HOST:PORT/metrics in a thread, for as long as the process runs.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as problem:
        raise OperatorError(
            f"cannot serve metrics on {host}:{port} ({problem.strerror}); choose another --metrics-port"
        ) from None
    log.info("metrics at http://%s:%s/metrics", host, port)
