"""What the pages show: one picture of the store and the release service, taken anew while someone looks."""

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from serving.contracts.events import utc_now
from serving.errors import JetloopError, OperatorError
from telemetry.releases import Release, fetch
from telemetry.store import Gap, Store, open_reader

log = logging.getLogger("jetloop.console")

STORE_S = 0.5  # between two looks at the store,
RELEASES_S = 2.0  # at the release service,
COUNTS_S = 5.0  # and at what needs a pass over all events
LOOKED_AT_S = 10.0  # after the last page asked, the feed rests
EVENTS = 200  # newest events shown

Row = Mapping[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Picture:
    """What is known now. An error is a line for a person; what was known before it stays."""

    at: datetime.datetime = field(default_factory=utc_now)
    robots: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)  # newest first, without metrics
    with_metrics: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    stored: int = 0
    releases: list[Release] = field(default_factory=list)
    store_error: str = ""
    releases_error: str = ""


class Feed:
    """Takes the picture: slow things in threads, each at its own pace, and none while nobody looks."""

    def __init__(self, store_url: str, releases_url: str, mlflow_url: str = "") -> None:
        self.releases_url = releases_url
        self.mlflow_url = mlflow_url
        self._store_url = store_url
        self._store: Store | None = None
        self._picture = Picture()
        self._looked_at = 0.0
        self._due = dict.fromkeys((self._look_at_store, self._look_at_counts, self._look_at_releases), 0.0)
        self._taking = asyncio.Lock()

    async def picture(self) -> Picture:
        """The picture as it is now; takes one first when nobody has looked for a while."""
        now = time.monotonic()
        stale = now - self._looked_at > 2 * STORE_S
        self._looked_at = now
        if stale:
            await self._take()
        return self._picture

    async def run(self) -> None:
        """Keeps the picture current, for as long as the server runs."""
        while True:
            if time.monotonic() - self._looked_at < LOOKED_AT_S:
                await self._take()
            await asyncio.sleep(STORE_S / 2)

    async def event(self, event_id: str) -> Row:
        """One event.

        Raises:
            JetloopError: there is none, or the store does not work.
        """
        return await asyncio.to_thread(lambda: self._opened().event(event_id))

    async def _take(self) -> None:
        async with self._taking:
            for look, due in list(self._due.items()):
                if time.monotonic() >= due:
                    self._due[look] = time.monotonic() + await look()
            self._picture = replace(self._picture, at=utc_now())

    async def _look_at_store(self) -> float:
        def look(store: Store) -> dict[str, Any]:
            return {
                "robots": store.robots(),
                "events": store.recent(EVENTS, metrics=False),
                "with_metrics": store.recent(EVENTS),
                "rejected": store.rejected(50),
            }

        await self._update("store_error", lambda: look(self._opened()))
        return STORE_S

    async def _look_at_counts(self) -> float:
        if self._picture.store_error:
            return STORE_S
        await self._update("store_error", lambda: {"gaps": self._opened().gaps(), "stored": self._opened().count()})
        return COUNTS_S

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

    def _opened(self) -> Store:
        if self._store is None:
            self._store = open_reader(self._store_url)
        return self._store
