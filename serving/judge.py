"""Is a new engine driving as it should? Counts what it does, and says what is wrong with it. Pure: no clock, no disk.

It is held to what its passport promises (`Expected`), and in any case to the table `[probation]` of robot.toml. The
promise is made by counting a network's drives in the simulator with the same `Tally`.
"""

import collections
import math
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, NamedTuple, Optional

import numpy as np

from serving.config import ProbationSettings
from serving.contracts.releases import Expected
from serving.decide import Motion

MIN_DECISIONS = 300  # fewer say nothing about a p99 or a rate
_MAX_DECISIONS = 20_000  # the newest latencies are kept
SPIN_S = 3.0  # a Jetbot that turns at a speed of 0.35 has been all the way round by then
# The promised latency is of one inference on the builder's machine; a decision is more than that, and boards differ.
LATENCY_RATIO = 10.0
LATENCY_FLOOR_MS = 80.0  # below this no robot drives the worse for it
_LONGEST_STEP_S = 0.5  # between two decisions; a longer pause is standing still, not driving


class Verdict(NamedTuple):
    """Why an engine may not go on."""

    cause: str  # latency, blocked-rate, spin; and what others judge: engine-failed, boot-loop, intervention, …
    detail: str  # for a person, with the figures


@dataclass
class Tally:
    """What one engine did since it, or the daemon, started."""

    driven_s: float = 0.0
    spin_s: float = 0.0  # since the last `forward`
    longest_spin_s: float = 0.0
    spins: int = 0  # each SPIN_S of driving without one `forward` is one
    decisions: int = 0
    blocked: int = 0
    restarts: int = 0  # of the engine, after it failed
    latency_ms: Deque[float] = field(default_factory=lambda: collections.deque(maxlen=_MAX_DECISIONS))
    last_s: Optional[float] = None

    def add(self, at_s: float, motion: Motion, latency_ms: float) -> None:
        """One decision that reached the motors.

        Args:
            at_s: when, on a clock that only goes forward.
        """
        step_s = 0.0 if self.last_s is None else min(max(at_s - self.last_s, 0.0), _LONGEST_STEP_S)
        self.last_s = at_s
        self.driven_s += step_s
        before_s = self.spin_s
        self.spin_s = 0.0 if motion is Motion.FORWARD else before_s + step_s
        self.spins += max(int(self.spin_s // SPIN_S) - int(before_s // SPIN_S), 0)
        self.longest_spin_s = max(self.longest_spin_s, self.spin_s)
        self.decisions += 1
        self.blocked += motion is not Motion.FORWARD
        self.latency_ms.append(latency_ms)

    @property
    def blocked_rate(self) -> float:
        """Share of decisions that were not `forward`."""
        return self.blocked / self.decisions if self.decisions else 0.0

    @property
    def spins_per_min(self) -> float:
        return 60 * self.spins / self.driven_s if self.driven_s else 0.0

    @property
    def latency_p99_ms(self) -> float:
        """From having the frame to having set the motors; 0 before the first decision."""
        return float(np.percentile(np.fromiter(self.latency_ms, float), 99)) if self.latency_ms else 0.0

    def figures(self) -> Dict[str, Any]:
        """For the event."""
        return {
            "driven_s": round(self.driven_s, 1),
            "decisions": self.decisions,
            "latency_p99_ms": round(self.latency_p99_ms, 2),
            "blocked_rate": round(self.blocked_rate, 4),
            "longest_spin_s": round(self.longest_spin_s, 1),
            "spins_per_min": round(self.spins_per_min, 2),
            "restarts": self.restarts,
        }


class Bounds(NamedTuple):
    """What an engine must hold: the narrower of what its passport promises and what robot.toml allows."""

    latency_p99_ms: float
    min_blocked_rate: float
    max_blocked_rate: float
    spins_per_min: float


def bounds(allowed: ProbationSettings, promised: Optional[Expected]) -> Bounds:
    """The bounds of one engine; a promise wholly outside of what robot.toml allows leaves robot.toml's."""
    if promised is None:
        return Bounds(allowed.max_latency_p99_ms, allowed.min_blocked_rate, allowed.max_blocked_rate, math.inf)
    low = max(allowed.min_blocked_rate, promised.blocked_rate_low)
    high = min(allowed.max_blocked_rate, promised.blocked_rate_high)
    if low > high:
        low, high = allowed.min_blocked_rate, allowed.max_blocked_rate
    latency_ms = max(LATENCY_RATIO * promised.latency_p99_ms, LATENCY_FLOOR_MS)
    return Bounds(min(allowed.max_latency_p99_ms, latency_ms), low, high, promised.spins_per_min_high)


def judge(
    tally: Tally, allowed: ProbationSettings, ending: bool = False, promised: Optional[Expected] = None
) -> Optional[Verdict]:
    """What is wrong with how an engine drives; None while nothing is.

    Args:
        tally: what it did.
        allowed: the table `[probation]` of robot.toml.
        ending: the probation would end now. Rates are judged then, or when half of the time was driven.
        promised: what its passport says of how it drives, if it says anything.
    """
    held = bounds(allowed, promised)
    if tally.restarts > allowed.max_restarts:
        text = f"it had to be started again {tally.restarts} times, allowed are {allowed.max_restarts}"
        return Verdict("engine-failed", text)
    if tally.longest_spin_s > allowed.max_spin_s:
        text = f"{tally.longest_spin_s:.0f} s without one `forward`, allowed are {allowed.max_spin_s:g} s"
        return Verdict("spin", text)
    if tally.decisions < MIN_DECISIONS:
        return None
    p99_ms = tally.latency_p99_ms
    if p99_ms > held.latency_p99_ms:
        by = "allowed" if held.latency_p99_ms == allowed.max_latency_p99_ms else "by its passport allowed"
        text = f"p99 of {tally.decisions} decisions is {p99_ms:.1f} ms, {by} are {held.latency_p99_ms:g} ms"
        return Verdict("latency", text)
    if ending or tally.driven_s >= allowed.duration_s / 2:
        return _judge_rates(tally, allowed, held)
    return None


def _judge_rates(tally: Tally, allowed: ProbationSettings, held: Bounds) -> Optional[Verdict]:
    """What takes a while of driving to tell."""
    rate = tally.blocked_rate
    if not held.min_blocked_rate <= rate <= held.max_blocked_rate:
        own = (held.min_blocked_rate, held.max_blocked_rate) == (allowed.min_blocked_rate, allowed.max_blocked_rate)
        limits = f"{'allowed' if own else 'promised'} are {held.min_blocked_rate:g} to {held.max_blocked_rate:g}"
        return Verdict("blocked-rate", f"{rate:.3f} of {tally.decisions} decisions are blocked, {limits}")
    if tally.spins_per_min > held.spins_per_min:
        text = f"{tally.spins_per_min:.1f} spins a minute, promised are {held.spins_per_min:g} at most"
        return Verdict("spin", text)
    return None
