"""Events of a fleet that never was, for the benchmarks: the kinds, sizes and order of real ones."""

import datetime
import random
import uuid
from collections.abc import Iterator

from serving.contracts.events import Event

DAY = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
ENGINE = "3f" * 32
SITES = ("berlin", "lyon", "osaka")


def synthetic(count: int, robots: int, days: int = 1, seed: int = 5) -> Iterator[Event]:
    """`count` events of `robots` robots at three sites, spread over `days` days from `DAY` on, the same each time.

    Nine of ten are metrics, as a robot sends them; one of fifty begins an avoidance.
    """
    chance = random.Random(seed)
    step = datetime.timedelta(days=days) / count
    for number in range(count):
        robot, time = number % robots, DAY + number * step
        turn = number + number // robots  # so that it is not always the same robots
        kind = ("avoidance.started" if turn % 50 == 10 else "avoidance.ended") if turn % 25 == 10 else "metrics"
        kind = "collision" if turn % 500 == 7 else kind
        yield Event(
            id=_id(time, chance),
            source=f"/jetloop/{SITES[robot % 3]}/jetbot-{robot}",
            type=kind,
            time=time,
            site=SITES[robot % 3],
            robot=f"jetbot-{robot}",
            session="20261123T000000Z-ab12",
            sequence=number // robots + 1,
            release=f"v{number * 4 // count + 1}-{'ab' * 4}",
            engine=ENGINE,
            sentat=time,
            data=_metrics(chance) if kind == "metrics" else {"p_blocked": chance.random(), "action": "left"},
        )


def _metrics(chance: random.Random) -> dict[str, float]:
    return {
        **{"interval_s": 10.0, "decisions": 300, "stale_frames": 0, "decisions_per_s": 30.0},
        **{"blocked_rate": chance.random(), "latency_p50_ms": 18 + chance.random(), "latency_p99_ms": 30.5},
        **{"age_p50_ms": 20.25, "age_p99_ms": 41.75, "outbox_depth": 0},
    }


def _id(time: datetime.datetime, chance: random.Random) -> str:
    """A UUID version 7 of that moment."""
    high = int(time.timestamp() * 1000) << 16 | 0x7000 | chance.getrandbits(12)
    return str(uuid.UUID(int=high << 64 | 0b10 << 62 | chance.getrandbits(62)))
