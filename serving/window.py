"""What is counted: between two metrics events, and since the start. What the counts become is in teller.py and
local/metrics.py.
"""

import bisect
import threading
import time
from typing import Any, Dict, List

import numpy as np

LATENCY_BOUNDS_MS = (5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0)


class Totals:
    """The same since the start of the daemon, for /metrics. Written by the control thread alone; read by anyone.

    Attributes:
        by_latency: decisions per bucket: up to each of LATENCY_BOUNDS_MS, and above.
    """

    def __init__(self) -> None:
        self.blocked = 0
        self.stale = 0
        self.latency_ms = 0.0
        self.by_latency = [0] * (len(LATENCY_BOUNDS_MS) + 1)

    def add(self, latency_ms: float, blocked: bool) -> None:
        self.blocked += blocked
        self.latency_ms += latency_ms
        self.by_latency[bisect.bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1


class Window:
    """What is counted between two metrics events. Added to by the control thread, taken by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_s = time.monotonic()
        self._latency_ms: List[float] = []
        self._age_ms: List[float] = []
        self._blocked = 0
        self._stale = 0
        self.totals = Totals()

    def add(self, latency_ms: float, age_ms: float, blocked: bool) -> None:
        with self._lock:
            self._latency_ms.append(latency_ms)
            self._age_ms.append(age_ms)
            self._blocked += blocked
        self.totals.add(latency_ms, blocked)

    def add_stale(self) -> None:
        self.totals.stale += 1
        with self._lock:
            self._stale += 1

    def take(self) -> Dict[str, Any]:
        """Everything since the last call, as the data of a `metrics` event. No decisions: no percentiles."""
        with self._lock:
            now_s = time.monotonic()
            interval_s, self._since_s = now_s - self._since_s, now_s
            latency_ms, self._latency_ms = self._latency_ms, []
            age_ms, self._age_ms = self._age_ms, []
            blocked, self._blocked = self._blocked, 0
            stale, self._stale = self._stale, 0
        taken: Dict[str, Any] = {"interval_s": interval_s, "decisions": len(latency_ms), "stale_frames": stale}
        taken["decisions_per_s"] = len(latency_ms) / interval_s if interval_s > 0 else 0.0
        if latency_ms:
            taken["blocked_rate"] = blocked / len(latency_ms)
            taken["latency_p50_ms"], taken["latency_p99_ms"] = map(float, np.percentile(latency_ms, (50, 99)))
            taken["age_p50_ms"], taken["age_p99_ms"] = map(float, np.percentile(age_ms, (50, 99)))
        return taken
