"""What the robots did hour by hour: counted with the events, exactly once."""

import datetime
import random
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.contracts.events import Event
from telemetry import tables
from telemetry.store import Batch, Store, open_store
from tests.servers.postgres import postgres  # noqa: F401
from tests.test_telemetry_samples import event
from tests.test_telemetry_store import _empty, store, url  # noqa: F401

HOUR = datetime.datetime(2026, 11, 23, 10, tzinfo=datetime.UTC)
ALWAYS = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
NUMBERS = st.one_of(st.integers(-5, 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
DATA = st.one_of(
    st.fixed_dictionaries(
        {
            "decisions": st.integers(0, 400),
            "blocked_rate": st.floats(0, 1),
            "latency_p50_ms": st.floats(0, 50),
            "latency_p99_ms": st.floats(0, 90),
        }
    ),
    st.dictionaries(
        st.sampled_from(["decisions", "blocked_rate", "latency_p50_ms", "latency_p99_ms", "count"]), NUMBERS, max_size=5
    ),
)
EVENTS = st.builds(
    lambda minutes, kind, robot, release, data: event(
        kind=kind, robot=robot, release=release, data=data, time=HOUR + datetime.timedelta(minutes=minutes)
    ),
    minutes=st.integers(0, 150),
    kind=st.sampled_from(["metrics", "avoidance.started", "collision", "intervention", "model.rolled-back", "other"]),
    robot=st.sampled_from(["r1", "r2"]),
    release=st.sampled_from(["", "v1"]),
    data=DATA,
)


def test_an_hour_of_a_robot(store: Store) -> None:
    """Each figure is what the events say; a late event counts in its own hour."""
    metrics = {"decisions": 300, "blocked_rate": 0.1, "latency_p50_ms": 10.0, "latency_p99_ms": 20.0}
    slow = {"decisions": 100, "blocked_rate": 0.5, "latency_p50_ms": 30.0, "latency_p99_ms": 60.0}
    told: list[tuple[str, dict[str, Any], float]] = [
        *(("metrics", metrics, 1), ("metrics", slow, 59), ("collision", {"count": 2}, 3), ("collision", {}, 4)),
        *(("avoidance.started", {}, 5), ("avoidance.ended", {}, 6), ("intervention", {}, 7)),
        *(("model.rolled-back", {"cause": "latency"}, 8), ("collision", {"count": 1}, 60)),
    ]
    store.add(
        Batch(
            events=[
                event(n, k, data=d, time=HOUR + datetime.timedelta(minutes=m)) for n, (k, d, m) in enumerate(told, 1)
            ]
        )
    )
    first, second = store.rollups(HOUR + datetime.timedelta(minutes=30), site="lab", robot="jetbot-1")
    assert (first["hour"], second["hour"]) == (HOUR, HOUR + datetime.timedelta(hours=1))
    counted = {"events": 8, "decisions": 400, "blocked": 80, "collisions": 3, "avoidances": 1, "interventions": 1}
    assert {name: first[name] for name in counted} == counted
    assert first["went_back"] == 1
    assert (first["blocked_rate"], first["latency_p50_ms"], first["latency_p99_ms"]) == (0.2, 15.0, 30.0)
    assert first["latency_p99_max_ms"] == 60.0
    assert (second["collisions"], second["blocked_rate"], second["latency_p99_ms"]) == (1, None, None)
    assert store.rollups(HOUR, site="elsewhere") == store.rollups(HOUR, robot="r9") == []
    assert len(store.rollups(HOUR + datetime.timedelta(hours=1))) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(known=st.lists(EVENTS, max_size=25), chance=st.randoms(use_true_random=False))
def test_counting_with_the_events_is_counting_them_anew(
    store: Store, known: list[Event], chance: random.Random
) -> None:
    """In whatever batches, order and number of copies events come, and whatever their data: the same rows."""
    _empty(store)
    sent = known + chance.choices(known, k=10) if known else []
    chance.shuffle(sent)
    while sent:
        size = chance.randint(1, 8)
        store.add(Batch(events=sent[:size]))
        sent = sent[size:]
    grown = store.rollups(ALWAYS)
    assert sum(row["events"] for row in grown) == len(known)
    assert store.rebuild_rollups() == len(grown)
    assert store.rollups(ALWAYS) == grown


def test_a_batch_that_fails_counts_nothing(store: Store) -> None:
    """Events and counts are one transaction."""
    with pytest.raises(Exception, match="does not"):
        store.add(Batch(events=[event(1), event(2**70)]))
    assert store.rollups(ALWAYS) == []


def test_two_collectors_count_once(postgres: Any) -> None:
    """Two collectors with the same events in other batches and orders: each counts once, and neither fails."""
    address = postgres.database()
    known = [event(n, robot=f"r{n % 5}", time=HOUR) for n in range(1, 401)]
    problems: list[Exception] = []

    def collect(seed: int) -> None:
        chance, mine = random.Random(seed), list(known)
        chance.shuffle(mine)
        one = open_store(address)
        try:
            for start in range(0, len(mine), 40):
                one.add(Batch(events=mine[start : start + 40]))
        except Exception as problem:
            problems.append(problem)
        finally:
            one.close()

    threads = [threading.Thread(target=collect, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    check = open_store(address)
    assert check.count() == sum(row["events"] for row in check.rollups(ALWAYS)) == 400
    with check._engine.connect() as connection:
        assert {row.last_sequence for row in connection.execute(sa.select(tables.robots))} == {396, 397, 398, 399, 400}
    check.close()
