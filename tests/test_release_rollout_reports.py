"""What the event store says of a release: counted by robot, on SQLite and on PostgreSQL."""

import datetime
from pathlib import Path

import pytest

from serving.contracts.events import utc_now
from telemetry.health import Seen, online, seen
from telemetry.store import Batch, Store, open_reader, open_store
from tests.servers.postgres import postgres  # noqa: F401
from tests.test_telemetry_samples import ENGINE, RELEASE, event, state

METRICS = {"decisions": 100, "interval_s": 10.0, "blocked_rate": 0.25, "latency_p99_ms": 20.0}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'events.db'}"
    return str(request.getfixturevalue("postgres").database())


def fill(store: Store) -> None:
    """Two robots with the release, one with another, and what must not count."""
    slow = {**METRICS, "blocked_rate": 0.75, "latency_p99_ms": 40.0}
    standing = {"decisions": 0, "interval_s": 10.0}
    told = [
        event(1, "metrics", data=METRICS),
        event(2, "metrics", data=slow),
        event(3, "metrics", data=standing),
        event(4, "engine.failed", data={"cause": "crashed"}),
        event(5, "collision"),
        event(6, "intervention"),
        event(7, "intervention"),
        event(1, "metrics", "jetbot-2", data=METRICS, release="another"),
        event(2, "model.rolled-back", "jetbot-2", release="", data={"from": RELEASE, "cause": "boot-loop"}),
        event(1, "model.rolled-back", "jetbot-3", data={"from": RELEASE, "cause": "operator"}),
        event(2, "model.refused", "jetbot-3", release="", data=refused(shadow=True)),
        event(3, "model.refused", "jetbot-3", release="", data=refused(engine="")),
        event(1, "model.refused", "jetbot-4", release="another", data=refused()),
    ]
    states = [state(), state("jetbot-2", online=False), state("jetbot-3", ring="canary")]
    store.add(Batch(events=told, states=states))


def refused(**changes: object) -> dict[str, object]:
    return {"release": RELEASE, "engine": ENGINE, "reason": "its logits differ", **changes}


def test_each_robot_is_counted_by_itself(url: str) -> None:
    """Driving, failures, collisions, interventions; who left it by its own judgement, by no order, as no shadow."""
    since = utc_now() - datetime.timedelta(minutes=1)
    writer = open_store(url)
    fill(writer)
    writer.close()
    store = open_reader(url)
    try:
        found = {one.robot: one for one in seen(store, RELEASE, since)}
        assert found == {
            "jetbot-1": Seen("lab", "jetbot-1", 20.0, 2, 200, 0.5, 30.0, crashes=1, collisions=1, interventions=2),
            "jetbot-2": Seen("lab", "jetbot-2", went_back=True),
            "jetbot-4": Seen("lab", "jetbot-4", went_back=True),
        }
        assert list(online(store, "champion")) == ["jetbot-1"]
        assert seen(store, RELEASE, utc_now() + datetime.timedelta(minutes=1)) == []
    finally:
        store.close()
