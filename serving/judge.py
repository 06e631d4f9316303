"""Is a new engine driving as it should? Counts what it does, and says what is wrong with it. Pure: no clock, no disk.

What a passport promises of the blocked rate and of spinning is not in the contract yet: the bounds are robot.toml's.
"""

import collections
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, NamedTuple, Optional

import numpy as np

from serving.config import ProbationSettings
from serving.decide import Motion

MIN_DECISIONS = 300  # fewer say nothing about a p99 or a rate
_MAX_DECISIONS = 20_000  # the newest latencies are kept
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
        self.spin_s = 0.0 if motion is Motion.FORWARD else self.spin_s + step_s
        self.longest_spin_s = max(self.longest_spin_s, self.spin_s)
        self.decisions += 1
        self.blocked += motion is not Motion.FORWARD
        self.latency_ms.append(latency_ms)

    @property
    def blocked_rate(self) -> float:
        """Share of decisions that were not `forward`."""
        return self.blocked / self.decisions if self.decisions else 0.0

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
            "restarts": self.restarts,
        }


def judge(tally: Tally, allowed: ProbationSettings, ending: bool = False) -> Optional[Verdict]:
    """What is wrong with how an engine drives; None while nothing is.

    Args:
        tally: what it did.
        allowed: the table `[probation]` of robot.toml.
        ending: the probation would end now. The blocked rate is judged then, or when half of the time was driven.
    """
    if tally.restarts > allowed.max_restarts:
        text = f"it had to be started again {tally.restarts} times, allowed are {allowed.max_restarts}"
        return Verdict("engine-failed", text)
    if tally.longest_spin_s > allowed.max_spin_s:
        text = f"{tally.longest_spin_s:.0f} s without one `forward`, allowed are {allowed.max_spin_s:g} s"
        return Verdict("spin", text)
    if tally.decisions < MIN_DECISIONS:
        return None
    p99_ms = tally.latency_p99_ms
    if p99_ms > allowed.max_latency_p99_ms:
        text = f"p99 of {tally.decisions} decisions is {p99_ms:.1f} ms, allowed are {allowed.max_latency_p99_ms:g} ms"
        return Verdict("latency", text)
    rate = tally.blocked_rate
    enough = ending or tally.driven_s >= allowed.duration_s / 2
    if enough and not allowed.min_blocked_rate <= rate <= allowed.max_blocked_rate:
        bounds = f"{allowed.min_blocked_rate:g} to {allowed.max_blocked_rate:g}"
        return Verdict("blocked-rate", f"{rate:.3f} of {tally.decisions} decisions are blocked, allowed are {bounds}")
    return None
