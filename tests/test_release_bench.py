"""The measuring command of releases, in short: that it measures every part of the way, and says what is too slow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.release import build
from tests.bench.release import STEPS, shortfalls, steps_s
from tests.conftest import ROOT, need


@pytest.mark.alone
def test_the_bench_measures_the_whole_way(tmp_path: Path) -> None:
    """One promotion to one robot and one to a small fleet: each step took its time, and a poll is one small request."""
    need("mosquitto")
    target = tmp_path / "release.json"
    options = ["--promotions", "1", "--robots", "5", "--fleet-promotions", "1", "--idle-s", "5", "--measure-only"]
    command = [sys.executable, "-m", "tests.bench.release", *options, "--to", str(target)]
    wide = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    (promotion,) = result["one_robot"]["promotions"]
    assert all(promotion["steps_s"][step.mark] > 0 for step in STEPS), promotion["steps_s"]
    assert sum(promotion["steps_s"].values()) == pytest.approx(promotion["seconds"], abs=0.02)
    assert result["poll"]["looks"] >= 1
    assert result["poll"]["requests_each"] == 1
    assert result["poll"]["bytes_each"] < 2000 < promotion["bytes"]
    assert result["fleet"]["robots"] == 5
    assert 0 < result["fleet"]["after_wakeup_s"][0] < result["fleet"]["worst_s"]
    for said in ("alias to one robot's first decision", "a poll with nothing new", "swapped, first decision"):
        assert said in " ".join(done.stdout.split()), done.stdout


def result_of(robot_s: float, fleet_s: float, requests: float, size: int) -> dict[str, Any]:
    return {
        "one_robot": {"worst_s": robot_s},
        "fleet": {"worst_s": fleet_s, "robots": 100},
        "poll": {"requests_each": requests, "bytes_each": size},
    }


def test_shortfalls_are_named() -> None:
    """Each figure that is over its limit is said, and no other."""
    assert shortfalls(result_of(3.0, 15.0, 1.0, 944)) == []
    for bad, says in (
        (result_of(3.1, 1.0, 1.0, 944), "one robot: 3.1 s"),
        (result_of(1.0, 15.1, 1.0, 944), "the last of 100 robots: 15.1 s"),
        (result_of(1.0, 1.0, 1.5, 944), "1.50 requests"),
        (result_of(1.0, 1.0, 1.0, 5000), "5000 bytes"),
    ):
        (found,) = shortfalls(bad)
        assert says in found


def test_a_step_without_a_mark_is_counted_with_the_next() -> None:
    """All steps together are the whole time, whatever was not seen."""
    marks: dict[str, float | None] = {step.mark: 10.0 + number for number, step in enumerate(STEPS, start=1)}
    marks["built"] = None
    steps = steps_s(10.0, marks)
    assert (steps["built"], steps["compiled"], steps["decided"]) == (0.0, 2.0, 1.0)
    assert sum(steps.values()) == len(STEPS)


@pytest.mark.parametrize(("disturbed_rounds", "runs", "p99_ms"), [(0, 100, 1.0), (1, 200, 1.0), (9, 300, 9.0)])
def test_latency_is_measured_until_a_round_is_quiet(
    monkeypatch: pytest.MonkeyPatch, disturbed_rounds: int, runs: int, p99_ms: float
) -> None:
    """A quiet round ends it; a disturbed one is repeated, and after three the quietest counts."""
    done, now_s = 0, 0.0

    def infer() -> None:
        nonlocal done, now_s
        done += 1
        disturbed = (done - build.WARM_UP_RUNS - 1) // build.RUNS < disturbed_rounds
        now_s += 0.009 if disturbed and done % 10 == 0 else 0.001

    monkeypatch.setattr(build.time, "perf_counter", lambda: now_s)
    assert build.measure_latency(infer) == pytest.approx((1.0, p99_ms))
    assert done == build.WARM_UP_RUNS + runs
