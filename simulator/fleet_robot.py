"""One robot of a simulated fleet: what it tells, by the contract of serving/contracts/events.py.

It drives nowhere: what it meets is drawn by lot. Its messages are those of the daemon: state, metrics, events, numbered
without a gap, each in memory until the broker has it. Sending them is fleet_line.py's part. Unlike the daemon's outbox
this one does not outlive the process; when it is full the oldest metrics go, then the oldest events, and are counted.
"""

import collections
import importlib.metadata
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from serving.contracts.events import Event, RobotState, utc_now, uuid7
from serving.contracts.releases import Passport
from serving.mqtt_desk import Who
from simulator.fleet_tally import Tally

MAX_WAITING = 5000  # messages a robot keeps for the broker
DECISIONS_PER_S = 20.0
MADE_UP_RELEASE = "simulated-v0"  # what a robot without a repository says it runs


@dataclass(frozen=True)
class Rates:
    """How often a robot tells what."""

    metrics_s: float = 10.0  # between two
    state_s: float = 5.0
    events_per_min: float = 6.0  # avoidances count as two: started, ended


class Made(NamedTuple):
    """An event that waits for the broker."""

    event: Event
    at_s: float  # time.monotonic()


class FleetRobot:
    """Who it is, what it runs, what waits.

    Args:
        who: site, name, session and ring.
        target: the kind of engine that it claims to run.
        rates: how often it tells what.
        tally: of the fleet.
        sequence: the last number that it used before.
        follows: it has a repository to follow, and no model until that brings one.
        seed: of what it meets.

    Attributes:
        waiting: made and not sent, oldest first.
        on_put: called whenever something was added to `waiting`, or the state changed.
    """

    def __init__(
        self, who: Who, target: str, rates: Rates, tally: Tally, sequence: int, follows: bool, seed: int
    ) -> None:
        self.who, self.sequence = who, sequence
        self.waiting: collections.deque[Made] = collections.deque()
        self.unacknowledged = 0  # made, and not yet with the broker
        self.state_changed = False
        self.on_put: Callable[[], None] = lambda: None
        self.passport: Passport | None = None  # of what it runs
        self._stands = ""
        self._target, self._rates, self._tally, self._follows = target, rates, tally, follows
        self._lot = random.Random(seed)
        self._started_s = time.monotonic()
        self._avoiding_since_s: float | None = None
        self._collisions = 0
        self._told_refusals: set[str] = set()
        self._due_s = {
            "state": self._started_s,
            "metrics": self._started_s + self._lot.uniform(0, rates.metrics_s),
            "event": self._started_s + self._gap_s(),
        }
        self._metrics_at_s = self._started_s

    @property
    def release(self) -> str:
        if not self._follows:
            return MADE_UP_RELEASE
        return self.passport.release_id if self.passport else ""

    def start(self) -> None:
        """The event that each start of the daemon begins with."""
        self.emit(
            "robot.started",
            {
                "version": importlib.metadata.version("jetloop"),
                "python": platform.python_version(),
                "machine": platform.machine(),
                "hardware": "simulated-fleet",
                "target": self._target,
                "ring": self.who.ring,
                "release": self.release,
            },
        )

    def step(self) -> float:
        """Tells what is due; returns the seconds until something is again."""
        now_s = time.monotonic()
        if now_s >= self._due_s["state"]:
            self.tell_state()
            self._due_s["state"] = now_s + self._rates.state_s
        if now_s >= self._due_s["metrics"]:
            self.emit("metrics", self._metrics(now_s))
            self._due_s["metrics"] = max(self._due_s["metrics"] + self._rates.metrics_s, now_s)
        if now_s >= self._due_s["event"]:
            if self.release:
                self._meet_something(now_s)
            self._due_s["event"] = now_s + self._gap_s()
        return max(min(self._due_s.values()) - time.monotonic(), 0.0)

    def activate(self, passport: Passport, cause: str) -> None:
        """Runs a release: says so as the daemon does after a swap; `cause` is the event's."""
        before, self.passport = self.release, passport
        self._tally.activated(passport.release_id, self.who.robot)
        data = {
            "from": before,
            "to": passport.release_id,
            "cause": cause,
            "gap_ms": self._lot.uniform(20, 60) if before else None,
            "parity_max_abs": passport.measured.parity_max_abs,
            "latency_p50_ms": passport.measured.latency_p50_ms,
            "latency_p99_ms": passport.measured.latency_p99_ms,
            "runtime": "simulated-fleet",
        }
        self.emit("model.activated", data)
        self.tell_state()

    def stand_still(self, why: str) -> None:
        """What it ran was withdrawn, or there is nothing for it to run."""
        if self.passport is None and self._stands == why:
            return
        withdrawn, self.passport, self._stands = self.passport, None, why
        if withdrawn is not None:
            self.refuse(withdrawn.release_id, withdrawn.engine.sha256, f"{withdrawn.release_id} is withdrawn")
        self.tell_state()

    def refuse(self, release: str, engine: str, reason: str) -> None:
        """Says once of each release why it does not run it."""
        if f"{release} {reason}" in self._told_refusals:
            return
        self._told_refusals.add(f"{release} {reason}")
        self._tally.refused(release, self.who.robot)
        self.emit("model.refused", {"release": release, "engine": engine, "reason": reason})

    def emit(self, event_type: str, data: dict[str, Any]) -> None:
        """Makes an event with the next number; it waits until the broker has it."""
        self.sequence += 1
        passport = self.passport
        event = Event(
            id=uuid7(),
            source=f"/jetloop/{self.who.site}/{self.who.robot}",
            type=event_type,
            time=utc_now(),
            site=self.who.site,
            robot=self.who.robot,
            session=self.who.session,
            sequence=self.sequence,
            release=self.release,
            engine=passport.engine.sha256 if passport else "",
            data=data,
        )
        if len(self.waiting) >= MAX_WAITING:
            self._drop_oldest()
        self.waiting.append(Made(event, time.monotonic()))
        self.unacknowledged += 1
        self._tally.kinds[event_type].made += 1
        self.on_put()

    def acknowledged(self, made: Made) -> None:
        """The broker has it."""
        self.unacknowledged -= 1
        self._tally.acknowledge(made.event.type, time.monotonic() - made.at_s)
        if made.event.type == "model.activated":
            self._tally.told(made.event.release)

    def tell_state(self) -> None:
        self.state_changed = True
        self.on_put()

    def state(self) -> RobotState:
        """What it does now."""
        release, passport = self.release, self.passport
        return RobotState(
            site=self.who.site,
            robot=self.who.robot,
            session=self.who.session,
            online=True,
            at=utc_now(),
            mode="driving" if release else "no-model",
            reason="" if release else self._stands or "waits for a release",
            ring=self.who.ring,
            target=self._target,
            release=release,
            model_version=passport.lineage.model_version if passport else "",
            engine=passport.engine.sha256 if passport else "",
            uptime_s=round(time.monotonic() - self._started_s, 1),
            outbox_depth=self.unacknowledged,
        )

    def _gap_s(self) -> float:
        """Until it meets something again."""
        return self._lot.expovariate(self._rates.events_per_min / 60) if self._rates.events_per_min else float("inf")

    def _meet_something(self, now_s: float) -> None:
        p_blocked = round(self._lot.uniform(0.6, 1.0), 4)
        if self._avoiding_since_s is not None:
            duration_s = round(now_s - self._avoiding_since_s, 3)
            self._avoiding_since_s = None
            self.emit("avoidance.ended", {"p_blocked": round(1 - p_blocked, 4), "duration_s": duration_s})
        elif self._lot.random() < 0.03:
            self._collisions += 1
            data = {"count": 1, "total": self._collisions, "action": "forward", "p_blocked": round(1 - p_blocked, 4)}
            self.emit("collision", data)
        else:
            self._avoiding_since_s = now_s
            self.emit("avoidance.started", {"p_blocked": p_blocked, "action": "left"})

    def _metrics(self, now_s: float) -> dict[str, Any]:
        """As serving.window.Window gives them, with figures drawn by lot; a robot without a model decides nothing."""
        interval_s, self._metrics_at_s = now_s - self._metrics_at_s, now_s
        decisions = round(DECISIONS_PER_S * interval_s) if self.release else 0
        data: dict[str, Any] = {"interval_s": interval_s, "decisions": decisions, "stale_frames": 0}
        data["decisions_per_s"] = decisions / interval_s if interval_s > 0 else 0.0
        if decisions:
            p50_ms = self._lot.uniform(15, 25)
            data["blocked_rate"] = round(self._lot.uniform(0.2, 0.5), 4)
            data["latency_p50_ms"], data["latency_p99_ms"] = p50_ms, p50_ms * self._lot.uniform(1.2, 2.0)
            data["age_p50_ms"], data["age_p99_ms"] = p50_ms + 15, p50_ms * 2 + 15
        return {**data, "outbox_depth": self.unacknowledged}

    def _drop_oldest(self) -> None:
        types = (made.event.type for made in self.waiting)
        place = next((place for place, kind in enumerate(types) if kind == "metrics"), 0)
        self._tally.kinds[self.waiting[place].event.type].dropped += 1
        del self.waiting[place]
        self.unacknowledged -= 1


def stamped(event: Event) -> bytes:
    """The payload, with the time at which it is handed over."""
    return msgspec.json.encode(msgspec.structs.replace(event, sentat=utc_now()))
