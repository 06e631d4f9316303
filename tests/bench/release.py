"""`python -m tests.bench.release`: from the alias to the robots, through every process on the way.

MLflow, Mosquitto, the release service and the robot's daemon run as people run them (release_rig.py); the gates are
those of params.yaml, the network is the one that it names, untrained. Times begin before the alias is set in MLflow.

    one robot    to the first decision by the new engine, read from its flight recorder; and the steps in between
    the fleet    to the last of many simulated robots: each verifies and downloads by itself, and loads nothing
    a poll       requests and bytes of the robot's looks while nothing is new
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from serving.command_line import run
from serving.errors import OperatorError
from tests.bench.release_rig import Rig, running
from tests.bench.telemetry_rig import wait_until, written

MAX_ROBOT_S = 3.0
MAX_FLEET_S = 15.0
POLL_REQUESTS = 1
MAX_POLL_BYTES = 4096
TIMESTAMP = "/metadata/timestamp.json"
_PAUSE_S = 2.0  # between promotions: what the one before left to be told is done

Say = Callable[[str], None]


class Step(NamedTuple):
    """One part of the way: from the mark before it to its own."""

    mark: str
    name: str


STEPS = (
    Step("heard", "MLflow sets the alias, its webhook calls"),
    Step("pending", "the service asks MLflow what the alias is on"),
    Step("gated", "gates on metrics, lineage, champion"),
    Step("built", "files fetched; compiled, parity and latency measured"),
    Step("compiled", "memory measured, engine staged"),
    Step("verified", "gates on the engine"),
    Step("woken", "signed, published, robots woken"),
    Step("looked", "robot: metadata, channel and passport verified"),
    Step("downloaded", "robot: engine and golden frames downloaded"),
    Step("loaded", "robot: engine started, golden frames checked"),
    Step("decided", "robot: swapped, first decision"),
)


def measure(rig: Rig, promotions: int, robots: int, fleet_promotions: int, idle_s: float, say: Say) -> dict[str, Any]:
    """Runs all parts.

    Args:
        promotions: that one robot's time is taken from; one more before them is told apart, as processes are cold.
        robots: of the fleet; 0: none.
        fleet_promotions: that the fleet's time is taken from.
        idle_s: how long the robot is watched while nothing is new.
        say: told what is being done.

    Raises:
        OperatorError: something did not come in time, or a process ended.
    """
    result: dict[str, Any] = {"network": rig.network, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    taken = []
    for number in range(promotions + 1):
        say(f"one robot, promotion {number} of {promotions}")
        taken.append(promotion(rig))
    result["one_robot"] = {
        "first_after_start_s": taken[0]["seconds"],
        "promotions": taken[1:],
        **_summary([one["seconds"] for one in taken[1:]]),
        "steps_s": {step.mark: _summary([one["steps_s"][step.mark] for one in taken[1:]]) for step in STEPS},
    }
    say("nothing new")
    result["poll"] = poll(rig, idle_s)
    if robots:
        result["fleet"] = fleet(rig, robots, fleet_promotions, taken[-1]["version"], say)
    return {**result, "load_after": os.getloadavg()[0]}


def promotion(rig: Rig) -> dict[str, Any]:
    """Promotes a new version, and takes its way to the first decision apart."""
    version = rig.version()
    time.sleep(_PAUSE_S)
    rig.meter.take()
    begun_unix_s = rig.promote(version)
    decided_unix_s = rig.first_decision_unix_s(version)
    asked, size = rig.meter.take()
    marks = {**rig.marks(version), "decided": decided_unix_s}
    return {
        "version": version,
        "seconds": round(decided_unix_s - begun_unix_s, 3),
        "steps_s": steps_s(begun_unix_s, marks),
        "requests": len(asked),
        "bytes": size,
    }


def steps_s(begun_unix_s: float, marks: "dict[str, float | None]") -> dict[str, float]:
    """The time of each step. Where a mark is missing, its step has none and the next one has both."""
    steps, before_s = {}, begun_unix_s
    for step in STEPS:
        mark_s = marks[step.mark]
        steps[step.mark] = round((mark_s or before_s) - before_s, 3)
        before_s = mark_s or before_s
    return steps


def poll(rig: Rig, idle_s: float) -> dict[str, Any]:
    """What the robot's looks cost while nothing is new; waits for at least one."""
    time.sleep(_PAUSE_S)  # a look that is under way
    rig.meter.take()
    time.sleep(idle_s)
    wait_until(lambda: TIMESTAMP in rig.meter.asked, 60, "a poll")
    time.sleep(_PAUSE_S)  # what may follow it belongs to it
    asked, size = rig.meter.take()
    looks = asked.count(TIMESTAMP)
    return {"looks": looks, "requests_each": len(asked) / looks, "bytes_each": round(size / looks)}


def fleet(rig: Rig, robots: int, promotions: int, running_now: str, say: Say) -> dict[str, Any]:
    """The time to the last robot of a fleet, over some promotions."""
    say(f"starting {robots} robots")
    rig.start_fleet(robots, running_now)
    seconds, versions = [], []
    for number in range(1, promotions + 1):
        say(f"{robots} robots, promotion {number} of {promotions}")
        version = rig.version()
        time.sleep(_PAUSE_S)
        begun_unix_s = rig.promote(version)
        seconds.append(round(rig.last_of_fleet_unix_s(version, robots) - begun_unix_s, 3))
        versions.append(version)
    counted = rig.end_fleet()
    releases = [rig.release_of(version) for version in versions]
    return {
        "robots": robots,
        "last_robot_s": seconds,
        **_summary(seconds),
        "after_wakeup_s": [counted["releases"][release]["last_robot_after_s"] for release in releases],
        "failed_looks": sum(counted["failed_looks"].values()),
    }


def shortfalls(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = []
    one, looks, many = result["one_robot"], result["poll"], result.get("fleet")
    if one["worst_s"] > MAX_ROBOT_S:
        found.append(f"one robot: {one['worst_s']} s at the worst, wanted {MAX_ROBOT_S:g}")
    if many and many["worst_s"] > MAX_FLEET_S:
        found.append(f"the last of {many['robots']} robots: {many['worst_s']} s, wanted {MAX_FLEET_S:g}")
    if looks["requests_each"] > POLL_REQUESTS or looks["bytes_each"] > MAX_POLL_BYTES:
        found.append(
            f"a poll: {looks['requests_each']:.2f} requests, {looks['bytes_each']} bytes, wanted one small one"
        )
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    one, looks, many = result["one_robot"], result["poll"], result.get("fleet")
    figures = Table("what", "median", "worst", "wanted")
    count = len(one["promotions"])
    figures.add_row(f"alias to one robot's first decision, {count}x", *_told(one), f"≤ {MAX_ROBOT_S:g} s")
    figures.add_row("the same, the first after the start", f"{one['first_after_start_s']:.2f} s", "", "")
    if many:
        what = f"alias to the last of {many['robots']} robots, {len(many['last_robot_s'])}x"
        figures.add_row(what, *_told(many), f"≤ {MAX_FLEET_S:g} s")
    each = f"{looks['requests_each']:g} request, {looks['bytes_each']} bytes"
    figures.add_row(f"a poll with nothing new, {looks['looks']}x", each, "", f"{POLL_REQUESTS} request")
    release = statistics.median(promoted["requests"] for promoted in one["promotions"])
    size = statistics.median(promoted["bytes"] for promoted in one["promotions"])
    figures.add_row("a new release", f"{release:g} requests, {size / 1e6:.1f} MB", "", "")
    steps = Table("step, of one robot's time", "median", "worst")
    for step in STEPS:
        steps.add_row(step.name, *_told(one["steps_s"][step.mark]))
    return [figures, steps]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    return {"median_s": round(statistics.median(seconds), 3), "worst_s": max(seconds)}


def _told(of: dict[str, Any]) -> tuple[str, str]:
    return f"{of['median_s']:.2f} s", f"{of['worst_s']:.2f} s"


@click.command()
@click.option("--promotions", type=click.IntRange(1), default=5, show_default=True, help="For one robot.")
@click.option("--robots", type=click.IntRange(0), default=100, show_default=True, help="Of the fleet; 0: none.")
@click.option("--fleet-promotions", type=click.IntRange(1), default=2, show_default=True)
@click.option("--idle-s", default=20.0, show_default=True, help="How long polls are watched; one comes every 5 s.")
@click.option("--measure-only", is_flag=True, help="Exit code 0 whatever the figures are.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/bench/release.json"),
    show_default=True,
    help="Where the figures go.",
)
def main(promotions: int, robots: int, fleet_promotions: int, idle_s: float, measure_only: bool, target: Path) -> None:
    """Measures the way from an alias to the robots. Needs Mosquitto, a minute or two, and a quiet machine.

    Exit code 1 when the worst of the times is over its limit, or a poll costs more than one small request.

    Example: python -m tests.bench.release --promotions 2 --robots 0
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each version that is registered,
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # and of its run
    with tempfile.TemporaryDirectory(prefix="jetloop-release-") as folder, Progress(transient=True) as bar:
        task = bar.add_task("starting MLflow, the broker, the release service and a robot", total=None)
        with running(Path(folder)) as rig:
            result = measure(
                rig, promotions, robots, fleet_promotions, idle_s, lambda what: bar.update(task, description=what)
            )
    written(target, result)
    for table in tables(result):
        Console().print(table)
    missing = shortfalls(result)
    if missing and not measure_only:
        raise OperatorError(f"{'; '.join(missing)} ({target})")


if __name__ == "__main__":
    run(main)
