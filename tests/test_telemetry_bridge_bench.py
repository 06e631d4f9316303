"""The measuring commands of the event path, in short: that they measure, and that they count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.telemetry import shortfalls
from tests.conftest import ROOT, need


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, timeout=200, capture_output=True)


@pytest.mark.alone
def test_the_bench_writes_its_figures(tmp_path: Path) -> None:
    """A short run gives rates, shares, latency and memory of both ways."""
    need("mosquitto")
    target = tmp_path / "telemetry.json"
    _run("tests.bench.telemetry", "--events", "3000", "--seconds", "3", "--measure-only", "--to", str(target))
    result = json.loads(target.read_text())
    for way, services in (("sqlite", {"collector"}), ("kafka_postgresql", {"bridge", "collector"})):
        assert result[way]["events"] == 3000
        assert result[way]["share_of_broker_alone"] > 0
        assert result[way]["half_load"]["p99_ms"] > 0
        assert set(result[way]["memory"]) == services


@pytest.mark.alone
def test_chaos_loses_nothing(tmp_path: Path) -> None:
    """Broker and collector are killed while events flow; the senders' tally and the store agree."""
    need("mosquitto")
    target = tmp_path / "chaos.json"
    _run("tests.bench.telemetry_chaos", "--direct", "--events", "2000", "--kills", "3", "--to", str(target))
    result = json.loads(target.read_text())
    assert (result["tally"], result["stored"], result["lost"], result["twice"]) == (2000, 2000, 0, 0)


def test_shortfalls_are_named() -> None:
    """A rate, a latency or a growth that is not as it should be is said, and nothing else."""
    memory = {"collector": {"at_a_fifth_mb": 60.0, "at_the_end_mb": 61.0}}
    good = {"share_of_broker_alone": 0.6, "half_load": {"p99_ms": 40.0}, "memory": memory}
    assert shortfalls({"sqlite": good, "kafka_postgresql": good}) == []
    bad = {
        "share_of_broker_alone": 0.4,
        "half_load": {"p99_ms": 251.0},
        "memory": {"collector": {"at_a_fifth_mb": 60.0, "at_the_end_mb": 200.0}},
    }
    found = " ".join(shortfalls({"sqlite": bad, "kafka_postgresql": good}))
    for expected in ("0.4 of the broker alone", "p99 251.0 ms", "grew from 60.0 to 200.0 MB"):
        assert expected in found
