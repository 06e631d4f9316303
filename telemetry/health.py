"""What the robots told of one release, robot by robot: the figures that a rollout is judged by. Reads only.

Counted by when the collector received it: a robot's clock may be wrong. What the figures mean is decided elsewhere.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from telemetry import tables
from telemetry.store import Store

_COUNTED = {"engine.failed": "crashes", "collision": "collisions", "intervention": "interventions"}
# A person's order, or the rollout's own, says nothing about the release.
_ASKED_FOR = ("operator", "withdrawn")


@dataclass(frozen=True)
class Seen:
    """What one robot told while it ran one release.

    Attributes:
        driven_s: time covered by metrics with decisions in them.
        windows: how many such metrics.
        blocked: share of the decisions that said blocked.
        latency_p99_ms: mean of the windows' p99.
        went_back: it left the release by its own judgement, or refused it.
    """

    site: str
    robot: str
    driven_s: float = 0.0
    windows: int = 0
    decisions: int = 0
    blocked: float = 0.0
    latency_p99_ms: float = 0.0
    crashes: int = 0
    collisions: int = 0
    interventions: int = 0
    went_back: bool = False


def seen(store: Store, release_id: str, since: datetime.datetime) -> list[Seen]:
    """What each robot told of a release since a moment (the collector's clock); robots that told nothing are left out.

    Raises:
        OperatorError: the store does not answer.
    """
    found: dict[tuple[str, str], Seen] = {}

    def of(row: Any) -> Seen:
        key = (row["site"], row["robot"])
        return found.setdefault(key, Seen(*key))

    for row in store._rows(_driven(release_id, since)):
        found[row["site"], row["robot"]] = replace(
            of(row),
            driven_s=float(row["driven_s"] or 0),
            windows=int(row["windows"]),
            decisions=int(row["decisions"] or 0),
            blocked=float(row["blocked"] or 0) / max(int(row["decisions"] or 0), 1),
            latency_p99_ms=float(row["latency_p99_ms"] or 0),
        )
    for row in store._rows(_counts(release_id, since)):
        counted: dict[str, Any] = {_COUNTED[row["type"]]: int(row["events"])}
        found[row["site"], row["robot"]] = replace(of(row), **counted)
    for row in store._rows(_left(release_id, since)):
        found[row["site"], row["robot"]] = replace(of(row), went_back=True)
    return list(found.values())


def online(store: Store, ring: str) -> Iterable[str]:
    """Names of the robots of a ring that are online.

    Raises:
        OperatorError: the store does not answer.
    """
    t = tables.robots
    return [row["robot"] for row in store._rows(sa.select(t.c.robot).where(t.c.ring == ring, t.c.online))]


def _driven(release_id: str, since: datetime.datetime) -> sa.Select[Any]:
    t = tables.events
    decisions, interval_s = t.c.data["decisions"].as_float(), t.c.data["interval_s"].as_float()
    return (
        sa.select(
            t.c.site,
            t.c.robot,
            sa.func.count().label("windows"),
            sa.func.sum(interval_s).label("driven_s"),
            sa.func.sum(decisions).label("decisions"),
            sa.func.sum(decisions * t.c.data["blocked_rate"].as_float()).label("blocked"),
            sa.func.avg(t.c.data["latency_p99_ms"].as_float()).label("latency_p99_ms"),
        )
        .where(t.c.type == "metrics", t.c.release == release_id, t.c.received_at >= since, decisions > 0)
        .group_by(t.c.site, t.c.robot)
    )


def _counts(release_id: str, since: datetime.datetime) -> sa.Select[Any]:
    t = tables.events
    return (
        sa.select(t.c.site, t.c.robot, t.c.type, sa.func.count().label("events"))
        .where(t.c.type.in_(_COUNTED), t.c.release == release_id, t.c.received_at >= since)
        .group_by(t.c.site, t.c.robot, t.c.type)
    )


def _left(release_id: str, since: datetime.datetime) -> sa.Select[Any]:
    t = tables.events
    back = (
        (t.c.type == "model.rolled-back")
        & (t.c.data["from"].as_string() == release_id)
        & t.c.data["cause"].as_string().not_in(_ASKED_FOR)
    )
    refused = (
        (t.c.type == "model.refused")
        & (t.c.data["release"].as_string() == release_id)
        & (t.c.data["engine"].as_string() != "")  # else it was not built for this robot, or not found: not its fault
        & t.c.data["shadow"].as_boolean().is_not(True)
    )
    return sa.select(t.c.site, t.c.robot).where(back | refused, t.c.received_at >= since).distinct()
