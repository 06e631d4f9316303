"""The alerting rules and the dashboard: they say what they are meant to, about metrics that are really there."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipelines.release.metrics import metrics as release_metrics
from telemetry.fair import SpoolMetrics
from telemetry.metrics import BridgeMetrics, CollectorMetrics, FleetMetrics
from telemetry.spool import Spool
from telemetry.store import Batch, open_store
from tests.conftest import ROOT, need
from tests.test_telemetry_samples import event, state

RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/jetloop.json"
_NAME = re.compile(r"\bjetloop_[a-z0-9_]+")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What all services together expose, as Prometheus reads it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'events.db'}"
    told = {"interval_s": 10.0, "decisions": 300, "blocked_rate": 0.2, "latency_p50_ms": 8.0, "latency_p99_ms": 12.0}
    first = [event(1), event(2, "metrics", data=told)]
    open_store(url).add(Batch(events=first, states=[state(temperature_c=51.0), state("jetbot-2", online=False)]))
    registry = CollectorRegistry()
    CollectorMetrics(registry).committed([*first, event(3, "of-its-own")], 2, 1, 0, 0.004)
    registry.register(FleetMetrics(url))
    registry.register(BridgeMetrics(lambda: (5, 1)))
    spool = Spool(tmp_path_factory.mktemp("spool"))
    spool.append("jetloop/v1/lab/jetbot-1/event/collision", b"{}")
    registry.register(SpoolMetrics(spool))
    attempts = [{"channel": "champion", "status": "refused", "current": False, "release_id": ""}]
    attempts.append({"channel": "champion", "status": "released", "current": True, "release_id": "v3"})
    return generate_latest(registry).decode() + release_metrics(attempts, healthy=True).decode()


def test_every_metric_of_the_rules_and_the_dashboard_is_exposed(exposed: str) -> None:
    """No rule and no panel waits for a metric that nothing exposes."""
    there = {name for line in exposed.splitlines() if not line.startswith("#") for name in _NAME.findall(line)}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = set(_NAME.findall(" ".join(target["expr"] for panel in panels for target in panel["targets"])))
    asked |= {name for line in RULES.read_text().splitlines() for name in _NAME.findall(line)}
    assert len(asked) > 15
    assert asked <= there


def test_what_is_exposed_is_what_the_store_says(exposed: str) -> None:
    """A robot that is offline has no figures that would pass for present ones; a foreign type is no series."""
    for line in (
        'jetloop_fleet_robot_online{robot="jetbot-1",site="lab"} 1.0',
        'jetloop_fleet_robot_online{robot="jetbot-2",site="lab"} 0.0',
        'jetloop_fleet_robot_temperature_celsius{robot="jetbot-1",site="lab"} 51.0',
        'jetloop_fleet_recent_collisions{release="collision-avoidance-v3-abababab"} 1.0',
        'jetloop_fleet_recent_decisions{release="collision-avoidance-v3-abababab"} 300.0',
        'jetloop_collector_events_total{type="other"} 1.0',
        'jetloop_collector_events_total{type="model.refused"} 0.0',
        "jetloop_collector_duplicates_total 1.0",
        'jetloop_release_attempts{channel="champion",status="withdrawn"} 0.0',
        "jetloop_store_up 1.0",
        'jetloop_spool_messages{robot="jetbot-1",site="lab"} 1.0',
    ):
        assert line in exposed.splitlines(), line
    assert 'silent_seconds{robot="jetbot-2"' not in exposed
    assert "of-its-own" not in exposed


def test_a_store_that_is_down_gives_no_zeros(tmp_path: Path) -> None:
    """Without a store only `jetloop_store_up 0` is exposed."""
    registry = CollectorRegistry()
    registry.register(FleetMetrics(f"sqlite:///{tmp_path / 'none.db'}"))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines == ["jetloop_store_up 0.0"]


def test_promtool_checks_and_tests_the_rules(tmp_path: Path) -> None:
    """Each rule fires on what it is for, and not before: tests/alert_rules_test.yml."""
    text = (ROOT / "tests/alert_rules_test.yml").read_text().replace("RULES", str(RULES))
    (tmp_path / "test.yml").write_text(text)
    promtool = need("promtool")
    for command in (
        ["check", "config", str(ROOT / "deploy/prometheus/prometheus.yml")],
        ["check", "rules", str(RULES)],
        ["test", "rules", str(tmp_path / "test.yml")],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one(tmp_path: Path) -> None:
    """Panels lie beside and not upon each other, have titles and targets, and ask the chosen data source."""
    dashboard = json.loads(DASHBOARD.read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(places) == len(set(places)) > 10
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
