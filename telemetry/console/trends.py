"""The last latencies of each robot, for its sparkline: filled once from the store, then kept from what comes anyway."""

import datetime
from collections import deque
from collections.abc import Mapping, Sequence

from telemetry.console.html import Row
from telemetry.console.reads import TREND, Key


class Trends:
    """Of all robots that were ever shown. Used by one thread at a time."""

    def __init__(self) -> None:
        self._values: dict[Key, deque[float]] = {}
        self._newest: dict[Key, datetime.datetime | None] = {}

    def lacking(self, robots: Sequence[Key]) -> list[Key]:
        """Those that are not followed yet."""
        return [key for key in robots if key not in self._values]

    def fill(self, found: Mapping[Key, Sequence[float]]) -> None:
        for key, values in found.items():
            self._values.setdefault(key, deque(values, maxlen=TREND))

    def add(self, robots: Sequence[Row]) -> None:
        """Takes the newest metrics of the robots that are followed; the same metrics count once."""
        for row in robots:
            key = (row["site"], row["robot"])
            told_at, before = row["metrics_at"], self._newest.get(key)
            self._newest[key] = told_at
            if key not in self._values or before is None or told_at == before:
                continue
            value = (row["metrics"] or {}).get("latency_p99_ms")
            if isinstance(value, int | float):
                self._values[key].append(float(value))

    def shown(self) -> dict[Key, Sequence[float]]:
        return {key: tuple(values) for key, values in self._values.items()}
