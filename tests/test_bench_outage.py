"""The outage benchmark, short: what it counts is right; its timing is for `python -m tests.bench.outage`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need


@pytest.mark.alone
def test_two_thousand_events_survive_an_outage(tmp_path: Path) -> None:
    """The real daemon, driving, and a Mosquitto with TLS that goes and comes back: every event arrives once and in
    order, at no more than the allowed rate, and the robot decides on meanwhile."""
    need("mosquitto")
    target = tmp_path / "outage.json"
    command = [sys.executable, "-m", "tests.bench.outage", "--events", "2000", "--before-s", "5", "--max-ratio", "100"]
    done = subprocess.run([*command, "--to", str(target)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    assert result["arrived"] == result["sent"] >= 2000
    assert result["duplicates"] == result["out_of_order"] == 0
    assert result["drain_s"] > 2000 / result["events_per_s_allowed"] * 0.9
    assert result["during_drain"]["decisions_per_s"] > 15
