"""A flood from one robot must not keep the others waiting: a sink before the sink of collector or bridge.

The broker hands out messages in the order in which they came, so where a flood brings more than can be stored,
everybody waits behind it. Here a robot that sends more than its share is put aside, into a spool on disk: that is quick
enough to keep pace with the broker, and safe, so it is acknowledged. What waits in the spool goes on when nothing else
comes, and a little of it always. As long as something of a robot waits there, all that comes from it follows, so its
order stays. When the spool is full nothing more is read: the broker keeps all, and everybody waits, as without a spool.
"""

import collections
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from telemetry.mqtt_inlet import Received, Sink
from telemetry.spool import Spool, robot_of

SHARE_PER_S = 1000  # messages of a robot; twice what a robot of jetloop allows itself (`mqtt.max_events_per_s`)
WRITE_S = 0.05  # the spool is written when its first message has waited so long,
WRITE_MESSAGES = 1000  # or when so many wait to be written, or when nothing more comes
FEED_MESSAGES = 250  # from the spool at once, when nothing else comes
TRICKLE_S = 0.25  # while something else comes, so often,
TRICKLE_MESSAGES = 50  # so many: the flood of a robot hides no state of it for good
_BUSY_S = 0.002  # between two looks while something is to be done
_SHOWN = 10  # robots in the metrics; else names of their own choosing would fill Prometheus

log = logging.getLogger("jetloop.spool")


class FairSink:
    """Of the MQTT inlet: passes on to another sink, and puts aside what one robot sends beyond its share.

    Args:
        inner: where messages go in the end; it settles by `mid`, in the order in which it took them.
        spool: for what is put aside; also what an earlier process left in it goes on.
        share_per_s: messages a second that a robot may send before it is put aside.
    """

    def __init__(self, inner: Sink, spool: Spool, share_per_s: int = SHARE_PER_S) -> None:
        self._inner, self._spool, self._share_per_s = inner, spool, share_per_s
        self._order: collections.deque[int] = collections.deque()  # mids of this connection, not acknowledged
        self._safe: set[int] = set()
        self._unwritten: list[int] = []  # mids of what is in the spool, but not on the disk
        self._unwritten_since = 0.0  # time.monotonic()
        self._rates: collections.Counter[str] = collections.Counter()  # messages by robot, in this second
        self._second = 0
        self._came = False  # anything, since the last `settle`
        self._fed = 0  # of the spool, that the inner sink has not settled
        self._fed_at = 0.0  # time.monotonic()
        self._told = set(spool.backlog)  # robots of which a flood was logged
        self._full = False
        if len(spool):
            log.info("%d messages wait in %s from before", len(spool), spool.folder)

    def take(self, message: Received) -> None:
        self._came = True
        robot = robot_of(message.topic)
        if message.mid:
            self._order.append(message.mid)
            if self._is_over(robot) or robot in self._spool.backlog:
                self._put_aside(robot, message)
                return
        self._inner.take(message)

    def room(self) -> int:
        if self._spool.full:
            return 0
        return min(self._inner.room(), WRITE_MESSAGES - len(self._unwritten))

    def wait_s(self) -> float:
        return min(self._inner.wait_s(), _BUSY_S) if self._spool.backlog else self._inner.wait_s()

    def settle(self) -> Sequence[int]:
        came, self._came = self._came, False
        late = time.monotonic() - self._unwritten_since > WRITE_S
        if self._unwritten and (late or not came or len(self._unwritten) >= WRITE_MESSAGES):
            self._write()
        self._settled(self._inner.settle())
        self._feed(came)
        self._tell_full()
        return self._acknowledged()

    def finish(self) -> Sequence[int]:
        self._write()
        self._settled(self._inner.finish())
        return self._acknowledged()

    def connection_ended(self) -> None:
        self._inner.connection_ended()
        self._spool.forget_unwritten()
        self._spool.rewind()  # what of it the inner sink has still goes its way, and comes twice
        self._order.clear()
        self._safe.clear()
        self._unwritten.clear()
        self._fed = 0

    def _is_over(self, robot: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._rates.clear()
        self._rates[robot] += 1
        return self._rates[robot] > self._share_per_s

    def _put_aside(self, robot: str, message: Received) -> None:
        if not self._unwritten:
            self._unwritten_since = time.monotonic()
        if robot not in self._told:
            self._told.add(robot)
            log.warning(
                "%s floods, with over %d messages a second: they are put aside in %s, and stored when there is room",
                robot[:200],
                self._share_per_s,
                self._spool.folder,
            )
        self._spool.append(message.topic, message.payload)
        self._unwritten.append(message.mid)

    def _write(self) -> None:
        """Raises OperatorError: the disk does not take it."""
        self._spool.sync()
        self._safe.update(self._unwritten)
        self._unwritten.clear()

    def _settled(self, mids: Sequence[int]) -> None:
        """Those of the spool have the mid -1: the broker knows nothing of them any more."""
        done = sum(mid < 0 for mid in mids)
        self._safe.update(mid for mid in mids if mid > 0)
        if done:
            self._spool.settle(done)
            self._fed -= done
            for robot in self._told.difference(self._spool.backlog):
                self._told.discard(robot)
                log.info("nothing of %s waits in %s any more", robot[:200], self._spool.folder)

    def _feed(self, came: bool) -> None:
        if not self._spool.backlog or self._fed > FEED_MESSAGES:
            return
        now, count = time.monotonic(), FEED_MESSAGES
        if came and not self._spool.full:
            if now - self._fed_at < TRICKLE_S:
                return
            count = TRICKLE_MESSAGES
        for one in self._spool.take(min(count, self._inner.room())):
            self._inner.take(Received(one.topic, one.payload, -1))
            self._fed += 1
        self._fed_at = now

    def _tell_full(self) -> None:
        if self._spool.full and not self._full:
            log.warning("the spool %s is full: all robots wait until there is room", self._spool.folder)
        self._full = self._spool.full

    def _acknowledged(self) -> list[int]:
        """MQTT wants acknowledgements in the order of the messages."""
        mids = []
        while self._order and self._order[0] in self._safe:
            mids.append(self._order.popleft())
            self._safe.discard(mids[-1])
        return mids


def fair(inner: Sink, folder: Path | None, registry: CollectorRegistry | None) -> Sink:
    """A fair sink with its metrics; without a folder the inner sink as it is.

    Raises:
        OperatorError: the folder cannot be used.
    """
    if folder is None:
        return inner
    spool = Spool(folder)
    if registry:
        registry.register(SpoolMetrics(spool))
    return FairSink(inner, spool)


class SpoolMetrics(Collector):
    """What waits in a spool, asked when Prometheus asks."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "jetloop_spool_messages", "Of a robot that floods: put aside, not stored.", labels=["site", "robot"]
        )
        for robot, count in collections.Counter(dict(self._spool.backlog)).most_common(_SHOWN):
            family.add_metric(robot.partition("/")[::2], count)
        yield family
        yield GaugeMetricFamily("jetloop_spool_bytes", "Put aside, not stored.", value=self._spool.bytes)
        yield GaugeMetricFamily("jetloop_spool_limit_bytes", "From here on all wait.", value=self._spool.max_bytes)
