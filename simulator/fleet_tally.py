"""What a simulated fleet did: counted while it runs, told at the end. No I/O here."""

import collections
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LATENCIES_KEPT = 200_000  # the newest


@dataclass
class Kind:
    """The messages of one type."""

    made: int = 0
    sent: int = 0  # handed to a connection; those that were sent again count again
    acknowledged: int = 0
    dropped: int = 0  # the robot's memory was full


@dataclass
class Rollout:
    """One release on its way through the fleet. Times are time.monotonic()."""

    first_heard_s: float  # when the first robot heard of it, by a wake-up or by looking
    robots: set[str] = field(default_factory=set)  # that run it
    refused: set[str] = field(default_factory=set)
    last_s: float | None = None  # when the last robot so far said that it drives with it
    told: int = 0  # events `model.activated` that the broker acknowledged
    last_told_s: float | None = None


class Tally:
    """Counts of the whole fleet; for the thread that runs it alone."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = collections.defaultdict(Kind)
        self.rollouts: dict[str, Rollout] = {}
        self.connected = 0  # now
        self.connects = 0
        self.breaks: dict[str, int] = collections.defaultdict(int)  # connections that ended, by why
        self.wakeups = 0
        self.looks = 0  # at the repository
        self.failed_looks: dict[str, int] = collections.defaultdict(int)
        self._latency_ms: collections.deque[float] = collections.deque(maxlen=_LATENCIES_KEPT)
        self._started_s = time.monotonic()

    @property
    def acknowledged(self) -> int:
        return sum(kind.acknowledged for kind in self.kinds.values())

    def acknowledge(self, kind: str, waited_s: float) -> None:
        """Counts a message that the broker has, `waited_s` after it was made."""
        self.kinds[kind].acknowledged += 1
        self._latency_ms.append(1e3 * waited_s)

    def heard_of(self, release: str, at_s: float) -> None:
        """A robot learned that there is such a release; the first one counts."""
        self.rollouts.setdefault(release, Rollout(at_s))

    def activated(self, release: str, robot: str) -> None:
        rollout = self.rollouts[release]
        rollout.robots.add(robot)
        rollout.last_s = time.monotonic()

    def refused(self, release: str, robot: str) -> None:
        if release in self.rollouts:
            self.rollouts[release].refused.add(robot)

    def told(self, release: str) -> None:
        """The broker acknowledged that a robot drives with this release."""
        rollout = self.rollouts.get(release)
        if rollout is not None:
            rollout.told += 1
            rollout.last_told_s = time.monotonic()

    def figures(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        seconds = time.monotonic() - self._started_s
        p50, p99 = np.percentile(self._latency_ms, (50, 99)) if self._latency_ms else (None, None)
        return {
            "seconds": round(seconds, 1),
            "messages": {name: vars(kind) for name, kind in sorted(self.kinds.items())},
            "acknowledged_per_s": round(self.acknowledged / seconds, 1) if seconds else None,
            "acknowledged_after_ms": {"p50": _rounded(p50), "p99": _rounded(p99)},
            "connects": self.connects,
            "breaks": dict(self.breaks),
            "wakeups": self.wakeups,
            "looks": self.looks,
            "failed_looks": dict(self.failed_looks),
            "releases": {name: _of_rollout(rollout) for name, rollout in self.rollouts.items()},
        }


def _of_rollout(rollout: Rollout) -> dict[str, Any]:
    def after(at_s: float | None) -> float | None:
        return None if at_s is None else _rounded(at_s - rollout.first_heard_s)

    return {
        "robots": len(rollout.robots),
        "refused": len(rollout.refused),
        "last_robot_after_s": after(rollout.last_s),
        "told": rollout.told,
        "last_told_after_s": after(rollout.last_told_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def as_text(figures: dict[str, Any], robots: int) -> list[str]:
    """The figures as a table for people."""
    lines = [f"{'message':22}{'made':>10}{'sent':>10}{'acknowledged':>14}{'dropped':>9}"]
    kinds = figures["messages"]
    sums = {name: sum(kind[name] for kind in kinds.values()) for name in ("made", "sent", "acknowledged", "dropped")}
    for name, kind in [*kinds.items(), ("all", sums)]:
        lines.append(f"{name:22}{kind['made']:10}{kind['sent']:10}{kind['acknowledged']:14}{kind['dropped']:9}")
    waited = figures["acknowledged_after_ms"]
    if waited["p50"] is not None:
        lines.append(
            f"acknowledged after {waited['p50']:.0f} ms in the median, {waited['p99']:.0f} ms at the 99th percentile; "
            f"{figures['acknowledged_per_s']:.0f}/s over {figures['seconds']:.0f} s"
        )
    broken = ", ".join(f"{count}x {why}" for why, count in figures["breaks"].items()) or "none broke"
    lines.append(f"{figures['connects']} connections made; {broken}")
    if figures["looks"]:
        failed = "".join(f"; {count}x {why}" for why, count in figures["failed_looks"].items())
        lines.append(f"{figures['wakeups']} wake-ups heard, {figures['looks']} looks at the repository{failed}")
    for name, of in figures["releases"].items():
        refused = f", {of['refused']} refused it" if of["refused"] else ""
        if of["last_robot_after_s"] is None:
            lines.append(f"{name}: no robot runs it{refused}")
            continue
        told = "" if of["last_told_after_s"] is None else f", the last told of it after {of['last_told_after_s']:.2f} s"
        lines.append(
            f"{name}: {of['robots']} of {robots} robots run it, the last "
            f"{of['last_robot_after_s']:.2f} s after the first one heard of it{told}{refused}"
        )
    return lines
