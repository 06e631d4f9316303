"""From what happens on the robot to events in the outbox, without ever holding up whoever tells it.

`emit` only appends to a queue in memory; one thread gives the events their numbers and commits them, usually within
milliseconds. While the disk refuses, they wait in memory, bounded, and what had to go, metrics before events, is
counted and told of.
"""

import collections
import datetime
import functools
import logging
import threading
from typing import Any, Deque, Dict, NamedTuple, Optional, Protocol, Tuple

import msgspec

from serving.contracts.events import EVENT_TYPES, MAX_PAYLOAD_BYTES, Event, event_topic, utc_now, uuid7
from serving.errors import OperatorError
from serving.outbox import EVENT, METRICS, NOTHING, Draft, Dropped, Outbox

MAX_IN_MEMORY = 5000  # events that wait for a disk that refuses
_BATCH = 500  # events a transaction
_RETRY_S = 1.0
_IDLE_S = 1.0  # how often an idle thread looks whether there is room to tell what was dropped

log = logging.getLogger(__name__)


class _Happening(NamedTuple):
    event_type: str
    id: str
    at: datetime.datetime
    release: str
    engine: str
    data: Dict[str, Any]


class Tells(Protocol):
    """What those who tell need of a Reporter."""

    def emit(self, event_type: str, data: Optional[Dict[str, Any]] = None, captured_at: Any = None) -> None: ...

    def engine_is(self, release_id: str, engine_sha256: str) -> None: ...


class Reporter:
    """Makes events of one start of the daemon and puts them into the outbox.

    Args:
        outbox: stays open after `close()`; it belongs to the caller.
        site, robot, session: who tells; each one a `Name`.
    """

    def __init__(self, outbox: Outbox, site: str, robot: str, session: str) -> None:
        self._outbox = outbox
        self._site, self._robot, self._session = site, robot, session
        self._engine: Tuple[str, str] = ("", "")  # release_id, sha256; one object, so that readers need no lock
        self._queue: Deque[_Happening] = collections.deque()
        self._lost = NOTHING
        self._lock = threading.Lock()  # of the queue and of `_lost`; never held over the disk
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def engine_is(self, release_id: str, engine_sha256: str) -> None:
        """What later events carry; empty strings while there is no model."""
        self._engine = (release_id, engine_sha256)

    def emit(
        self, event_type: str, data: Optional[Dict[str, Any]] = None, captured_at: Optional[datetime.datetime] = None
    ) -> None:
        """Tells that something happened. Returns at once, whatever the disk does.

        Args:
            event_type: one of `EVENT_TYPES`.
            data: what JSON can hold; numpy numbers are taken too. At most 64 KiB with the envelope.
            captured_at: when it happened, with a time zone; now, if not given.

        Raises:
            ValueError: no such event type.
        """
        if event_type not in EVENT_TYPES:
            raise ValueError(f"no event type `{event_type}`; there are {', '.join(EVENT_TYPES)}")
        happening = _Happening(event_type, uuid7(), captured_at or utc_now(), *self._engine, dict(data or {}))
        with self._lock:
            if len(self._queue) >= MAX_IN_MEMORY:
                self._lose_oldest()
            self._queue.append(happening)
        self._news.set()

    def close(self, timeout_s: float = 5.0) -> None:
        """Commits what is still in memory and ends the thread; what a failing disk does not take in time is lost."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout_s)
        if self._queue:
            log.error("%d events in memory are lost: the disk did not take them", len(self._queue))

    def _run(self) -> None:
        failing = False
        while True:
            self._news.wait(_IDLE_S)
            self._news.clear()
            try:
                self._commit_all()
                if self._outbox.expire():
                    self._news.set()  # there may be more
                self._outbox.report_dropped(self._report)
            except OperatorError as problem:
                if not failing:
                    log.error("events wait in memory, tried again every %g s: %s", _RETRY_S, problem)
                failing = True
                if self._closing.wait(_RETRY_S):
                    return
                self._news.set()
                continue
            if failing:
                log.warning("the disk takes events again")
                failing = False
            if self._closing.is_set() and not self._queue:
                return

    def _commit_all(self) -> None:
        """Moves the queue into the outbox, a transaction a batch; what fails stays in the queue.

        Raises:
            OperatorError: the disk failed.
        """
        while self._queue or any(self._lost):
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                lost, self._lost = self._lost, NOTHING
            try:
                self._outbox.put([self._draft(happening) for happening in batch], lost)
            except OperatorError:
                with self._lock:
                    self._queue.extendleft(reversed(batch))
                    self._lose(lost)
                raise

    def _draft(self, happening: _Happening) -> Draft:
        kind = METRICS if happening.event_type == "metrics" else EVENT
        topic = event_topic(self._site, self._robot, happening.event_type)
        return Draft(kind, topic, functools.partial(self._encode, happening))

    def _encode(self, happening: _Happening, sequence: int) -> bytes:
        event = Event(
            id=happening.id,
            source=f"/jetloop/{self._site}/{self._robot}",
            type=happening.event_type,
            time=happening.at,
            site=self._site,
            robot=self._robot,
            session=self._session,
            sequence=sequence,
            release=happening.release,
            engine=happening.engine,
            data=happening.data,
        )
        try:
            payload = msgspec.json.encode(event, enc_hook=_plain)
            problem = f"{len(payload)} bytes" if len(payload) > MAX_PAYLOAD_BYTES else ""
        except (TypeError, ValueError, RecursionError) as error:
            problem = str(error)
        if problem:  # the event itself is worth more than its data
            log.error("the data of event %s (%s) is left out: %s", happening.id, happening.event_type, problem)
            payload = msgspec.json.encode(msgspec.structs.replace(event, data={"left_out": problem[:200]}))
        return payload

    def _report(self, dropped: Dropped) -> Draft:
        data = {"metrics": dropped.metrics, "events": dropped.events}
        log.warning("the outbox was full: %d metrics and %d events were dropped", dropped.metrics, dropped.events)
        return self._draft(_Happening("outbox.dropped", uuid7(), utc_now(), *self._engine, data))

    def _lose_oldest(self) -> None:
        """Makes room: the oldest metrics in memory, or the oldest event if there are none. Needs the lock."""
        types = (happening.event_type for happening in self._queue)
        oldest = next((place for place, kind in enumerate(types) if kind == "metrics"), None)
        del self._queue[oldest or 0]
        self._lose(Dropped(events=1) if oldest is None else Dropped(metrics=1))

    def _lose(self, lost: Dropped) -> None:
        self._lost = Dropped(self._lost.metrics + lost.metrics, self._lost.events + lost.events)


def _plain(value: Any) -> Any:
    """A numpy number or array as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
