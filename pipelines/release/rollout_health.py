"""Whether a release does as well as the one before it, on the same robots. Pure: counts in, a verdict out.

Counts are small, so each is held against the near end of a 95 % interval: what could still be chance is no reason to
stop. Ten decisions a second look at almost the same picture, so the share of blocked ones is judged by its windows of
metrics (10 s), not by its decisions.
"""

import enum
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.params import RolloutParams

if TYPE_CHECKING:
    from telemetry.health import Seen


class Outcome(enum.Enum):
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    NOT_ENOUGH = "not-enough"  # seen yet


class Verdict(NamedTuple):
    """What the reports say.

    Attributes:
        outcome: of all of them together.
        text: one line for people.
        withdraw: unhealthy in a way that `withdraw_on` names.
    """

    outcome: Outcome
    text: str
    withdraw: bool = False


class _Problem(NamedTuple):
    name: str
    text: str


def judge(new: "Sequence[Seen]", before: "Sequence[Seen]", expected: int, limits: RolloutParams) -> Verdict:
    """The verdict on a release.

    Args:
        new: what the robots told of it.
        before: what robots told of the release before it; those that are in `new` count, or all where none of them is.
        expected: robots of the share that are online.
        limits: the block `rollout`.
    """
    same = {(one.site, one.robot) for one in new}
    before = [one for one in before if (one.site, one.robot) in same and one.windows] or before
    problems = [*_events(new, before, limits), *_went_back(new, limits)]
    problems += [*_latency(new, before, limits), *_blocked(new, before, limits)]
    if problems:
        text = "; ".join(problem.text for problem in problems)
        return Verdict(Outcome.UNHEALTHY, text, any(problem.name in limits.withdraw_on for problem in problems))
    driving = [one for one in new if one.windows]
    robots, decisions = len(driving), sum(one.decisions for one in driving)
    needed = min(limits.min_robots, expected)
    seen = f"{robots} robots told of {decisions} decisions in {sum(one.driven_s for one in driving) / 60:.1f} min"
    if needed and (robots < needed or decisions < limits.min_decisions):
        return Verdict(Outcome.NOT_ENOUGH, f"{seen}, {needed} and {limits.min_decisions} are asked for")
    if not needed and not robots:
        return Verdict(Outcome.HEALTHY, "no robot that is online belongs to this share")
    return Verdict(Outcome.HEALTHY, f"{seen}, as well as before")


def ratio_at_least(events: int, driven_s: float, before: int, before_s: float) -> float:
    """The lower end of the 95 % interval of the ratio of two Poisson rates: exact, by the share that fell to the first.

    0 where nothing happened, or one of the two did not drive.
    """
    if not events or driven_s <= 0 or before_s <= 0:
        return 0.0
    from scipy.stats import binomtest  # takes a second to import; a service without a store does not need it

    share: float = binomtest(events, events + before).proportion_ci(0.95, method="exact").low
    return share / (1 - share) * before_s / driven_s if share < 1 else float("inf")


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` observations, by Wilson; all of 0..1 where there are none."""
    if not count:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _events(new: "Sequence[Seen]", before: "Sequence[Seen]", limits: RolloutParams) -> list[_Problem]:
    problems = []
    driven_s, before_s = sum(one.driven_s for one in new), sum(one.driven_s for one in before)
    for name in ("crashes", "collisions", "interventions"):
        events, earlier = (sum(getattr(one, name) for one in seen) for seen in (new, before))
        # A release that crashes at once drives no time at all, so a minute each is the least that counts. And no robot
        # is expected to crash: where little is known of the release before, it is taken as an hour each without.
        least_s = max(before_s, 3600.0 * len(new)) if name == "crashes" else before_s
        least = ratio_at_least(events, max(driven_s, 60.0 * len(new)), earlier, least_s)
        if least > limits.max_events_ratio:
            text = f"{events} {name} in {driven_s / 3600:.2f} h, {earlier} in {before_s / 3600:.2f} h before: "
            problems.append(_Problem(name, text + f"at least {least:.1f} times as often"))
    return problems


def _went_back(new: "Sequence[Seen]", limits: RolloutParams) -> list[_Problem]:
    left = sum(one.went_back for one in new)
    if not left or wilson(left / len(new), len(new))[0] <= limits.max_went_back:
        return []
    return [_Problem("went_back", f"{left} of {len(new)} robots went back from it or refused it")]


def _latency(new: "Sequence[Seen]", before: "Sequence[Seen]", limits: RolloutParams) -> list[_Problem]:
    """The median over the robots of how much slower each became; a robot is compared with itself."""
    earlier = {(one.site, one.robot): one.latency_p99_ms for one in before if one.windows}
    pairs = [(one, earlier.get((one.site, one.robot), 0.0)) for one in new if one.windows >= _MIN_WINDOWS]
    ratios = [one.latency_p99_ms / was_ms for one, was_ms in pairs if was_ms > 0]
    if not ratios or statistics.median(ratios) <= limits.max_latency_ratio:
        return []
    text = f"p99 of a decision is {statistics.median(ratios):.1f} times what it was, on {len(ratios)} robots"
    return [_Problem("latency", text)]


def _blocked(new: "Sequence[Seen]", before: "Sequence[Seen]", limits: RolloutParams) -> list[_Problem]:
    share, windows = _blocked_share(new)
    earlier, earlier_windows = _blocked_share(before)
    (low, high), (low_before, high_before) = wilson(share, windows), wilson(earlier, earlier_windows)
    if max(low - high_before, low_before - high) <= limits.max_blocked_change:
        return []
    return [_Problem("blocked", f"{share:.0%} of the decisions say blocked, {earlier:.0%} before")]


def _blocked_share(seen: "Sequence[Seen]") -> tuple[float, int]:
    decisions = sum(one.decisions for one in seen)
    blocked = sum(one.blocked * one.decisions for one in seen)
    return (min(blocked / decisions, 1.0) if decisions else 0.0), sum(one.windows for one in seen)


_MIN_WINDOWS = 3  # of metrics by one robot, before its latency counts: the first holds the warm-up
