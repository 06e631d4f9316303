"""What the pages show: one picture of the store and the release service, taken anew while someone looks.

One picture for all who look, however many they are. What only one page needs is asked when that page asks.
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from serving.contracts.events import utc_now
from serving.errors import JetloopError, OperatorError
from telemetry.console.html import Row
from telemetry.console.reads import ConsoleStore, Health, Key, open_console_store
from telemetry.console.trends import Trends
from telemetry.releases import Release, fetch
from telemetry.store_reading import Gap

log = logging.getLogger("jetloop.console")

STORE_S = 0.5  # between two looks at the store,
RELEASES_S = 2.0  # at the release service,
COUNTS_S = 10.0  # and at what needs a pass over all events
LOOKED_AT_S = 10.0  # after the last page asked, the feed rests
EVENTS = 200  # newest events shown
WAKE_S = 1.0  # how long a first view waits for the first picture
ASLEEP_S = 0.2
LATE_S = 5.0  # an event may be committed so long after the time that it says it came
AVOIDED_H = 24.0  # how far back the last avoidance is looked for
HEALTH_H = 24.0  # of the releases

_T = TypeVar("_T")


@dataclass(frozen=True)
class Picture:
    """What is known now. An error is a line for a person; what was known before it stays."""

    at: datetime.datetime = field(default_factory=utc_now)
    robots: Sequence[Row] = ()
    events: Sequence[Row] = ()  # newest first, without metrics
    rejected: Sequence[Row] = ()
    avoided: Mapping[Key, datetime.datetime] = field(default_factory=dict)
    trends: Mapping[Key, Sequence[float]] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    stored: int | None = None  # None: not counted yet
    health: Mapping[str, Health] = field(default_factory=dict)
    releases: Sequence[Release] = ()
    store_error: str = ""
    releases_error: str = ""


class Feed:
    """Takes the picture: slow things in threads, each at its own pace, and none while nobody looks."""

    def __init__(self, store_url: str, releases_url: str, mlflow_url: str = "") -> None:
        self.store_url = store_url
        self.releases_url = releases_url
        self.mlflow_url = mlflow_url
        self._store: ConsoleStore | None = None
        self._picture = Picture()
        self._trends = Trends()
        self._looked_at = 0.0
        self._waking: set[asyncio.Task[float]] = set()

    async def picture(self) -> Picture:
        """The picture as it is now; takes one first when nobody has looked for a while."""
        asleep = time.monotonic() - self._looked_at > LOOKED_AT_S
        self._looked_at = time.monotonic()
        if asleep:
            self._trends = Trends()
            self._waking = {asyncio.create_task(look()) for look in (self._look_at_store, self._look_at_releases)}
        if self._waking:
            await asyncio.wait(self._waking, timeout=WAKE_S)
            self._waking = {task for task in self._waking if not task.done()}
        return self._picture

    async def run(self) -> None:
        """Keeps the picture current, for as long as the server runs."""
        looks = (self._look_at_store, self._look_at_counts, self._look_at_releases)
        await asyncio.gather(*(self._keep(look) for look in looks))

    async def _keep(self, look: Callable[[], Awaitable[float]]) -> None:
        """Looks again and again, in its own time: a pass over all events does not hold up the robots."""
        while True:
            looked_at = time.monotonic() - self._looked_at < LOOKED_AT_S
            await asyncio.sleep(await look() if looked_at else ASLEEP_S)

    async def ask(self, question: Callable[[ConsoleStore], _T]) -> _T:
        """Asks the store something of one page, in a thread.

        Raises:
            JetloopError: it does not know, or does not work.
        """
        return await asyncio.to_thread(lambda: question(self._opened()))

    async def show_trends(self, robots: Sequence[Key]) -> None:
        """Sees to it that the trends of these robots are in the next picture."""
        lacking = self._trends.lacking(robots)
        if lacking and not self._picture.store_error:
            try:
                self._trends.fill(await self.ask(lambda store: store.latencies(lacking)))
            except JetloopError as problem:
                log.info("no trends: %s", problem)  # the picture's own look says it on the page

    async def _look_at_store(self) -> float:
        known = self._picture.events

        def look(store: ConsoleStore) -> dict[str, Any]:
            since = known[0]["received_at"] - datetime.timedelta(seconds=LATE_S) if known else None
            new = store.told_since(since, EVENTS) if since else store.recent(EVENTS, metrics=False)
            ids = {row["id"] for row in new}
            events = [*new, *(row for row in known if row["id"] not in ids)][:EVENTS]
            return {"robots": store.robots(), "events": events, "rejected": store.rejected(50)}

        await self._update("store_error", lambda: look(self._opened()))
        self._trends.add(self._picture.robots)
        avoided = dict(self._picture.avoided)
        for row in self._picture.events:
            key = (row["site"], row["robot"])
            if row["type"] == "avoidance.started" and (key not in avoided or row["captured_at"] > avoided[key]):
                avoided[key] = row["captured_at"]
        self._picture = replace(self._picture, at=utc_now(), avoided=avoided, trends=self._trends.shown())
        return STORE_S

    async def _look_at_counts(self) -> float:
        if self._picture.store_error:
            return STORE_S
        began = time.monotonic()

        def look(store: ConsoleStore) -> dict[str, Any]:
            since = utc_now() - datetime.timedelta(hours=AVOIDED_H)
            return {
                "stored": store.count(),
                "gaps": store.gaps(),
                "avoided": {**store.avoided(since), **self._picture.avoided},
                "health": store.health(HEALTH_H),
            }

        await self._update("store_error", lambda: look(self._opened()))
        return max(COUNTS_S, 20 * (time.monotonic() - began))  # a large store is passed over more rarely

    async def _look_at_releases(self) -> float:
        await self._update("releases_error", lambda: {"releases": fetch(self.releases_url)})
        return RELEASES_S

    async def _update(self, error: str, look: Callable[[], dict[str, Any]]) -> None:
        """Puts what `look` found into the picture, or why it found nothing."""
        try:
            found = {**await asyncio.to_thread(look), error: ""}
        except JetloopError as problem:
            found = {error: str(problem)}
            if isinstance(problem, OperatorError) and getattr(self._picture, error) != found[error]:
                log.warning("%s", problem)
        self._picture = replace(self._picture, **found)

    def _opened(self) -> ConsoleStore:
        if self._store is None:
            self._store = open_console_store(self.store_url)
        return self._store
