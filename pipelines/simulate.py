"""Stage `simulate`: the exported network drives the arena's robot, in rooms that nothing was trained on.

    reads   params.yaml (simulate, and the limits of driving in gates), build/export/model.onnx and export.json,
            build/train/run.json; from MLflow the champion, if there is one, to compare with in the same rooms
    writes  build/simulate/metrics.json   figures with 95 % intervals, what `dvc metrics show` tells
            build/simulate/episodes.csv   one line a drive
            build/simulate/paths.png      each room from above, the ways driven, the collisions
            build/simulate/clip.gif       the worst drive, from above and through the camera

Rooms are driven until it is sure on which side of the release service's limits the network is, `simulate.max_rooms` at
most. What each figure means, and when it is sure, is in simulator/scores.py. Everything is logged to the MLflow run
that the stage `train` started; the release service asks it for collisions and distance (pipelines/release/gates.py),
and for what the passport promises of how a robot drives with it (pipelines/release/promise.py). A poor network is no
error here.
The processes that drive import this module too, so it imports little.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import click

from pipelines.champion import DRIVEN_TAG, Champion, drive_champion, promoted
from pipelines.params import GateParams, block
from serving.command_line import log_to_stderr, run
from serving.contracts.releases import Decision, ExportReport
from serving.errors import RejectedError
from simulator.drive import Network
from simulator.scores import Figures, Limits, differences, figures, promise, totals, undecided
from simulator.settings import SuiteSettings
from simulator.suite import Episode, key, run_suite, write_counts
from simulator.suite_pictures import draw_paths, make_clip
from training.progress import track
from training.tracking import Run

EXPORT = Path("build/export")
OUT = Path("build/simulate")
EXPECTED = "simulate/expected/"  # begins the names of the metrics that pipelines/release/promise.py reads
LOG = logging.getLogger("simulate")


def drive(
    model: Path,
    decision: Decision,
    suite: SuiteSettings,
    processes: int,
    what: str,
    seeds: Sequence[int] | None = None,
) -> list[Episode]:
    """Every episode of the suite, or of the rooms with these seeds, in order; progress is shown.

    Raises:
        OperatorError: the file cannot be read, or a process was killed.
        RejectedError: the network is no network for a robot.
    """
    seeds = suite.seeds if seeds is None else seeds
    rooms = track(run_suite(model, decision, suite, processes, seeds), what, len(seeds))
    return sorted((one for room in rooms for one in room), key=lambda one: (one.seed, one.start))


def drive_until_sure(
    model: Path, decision: Decision, suite: SuiteSettings, limits: Limits, processes: int
) -> list[Episode]:
    """Every episode of as many rooms as it takes until the gates' verdict is sure, or of the most that are allowed.

    Raises:
        OperatorError: the file cannot be read, or a process was killed.
        RejectedError: the network is no network for a robot.
    """
    episodes: list[Episode] = []
    before = 0
    for rooms in suite.looks:
        seeds = suite.of(rooms).seeds[before:]
        episodes += drive(model, decision, suite, processes, f"driving, rooms {before + 1} to {rooms}", seeds)
        before = rooms
        if not undecided(figures(totals(episodes), looks=len(suite.looks)), limits):
            break
    return episodes


def compare_with_champion(report: ExportReport, suite: SuiteSettings, processes: int) -> Champion | None:
    """How the champion drives in the same rooms; None without one, where it is this network, or, with a warning, where
    it cannot be had.

    Raises:
        OperatorError: MLflow cannot be asked.
    """
    found = promoted()
    if found is None or found[1].tags.get("lineage.onnx_sha256") == report.onnx_sha256:
        return None
    registry, version = found
    try:
        return drive_champion(
            registry,
            version,
            suite,
            lambda model, decision: drive(model, decision, suite, processes, f"driving, champion {version.number}"),
        )
    except RejectedError as problem:
        LOG.warning("version %s, the champion, cannot be compared with: %s", version.number, problem)
        return None


def measure(episodes: list[Episode], champion: Champion | None, looks: int = 1) -> tuple[Figures, Figures]:
    """The figures of the network, and by how much they are above the champion's; empty without one.

    Args:
        episodes: of the network.
        champion: how the champion drove in the same rooms.
        looks: how often the figures were looked at, at most, to decide whether to drive on.
    """
    rooms = totals(episodes)
    return figures(rooms, looks=looks), {} if champion is None else differences(rooms, totals(champion.episodes))


def write(
    episodes: list[Episode], found: Figures, against: Figures, champion: str, out: Path, site: int | None = None
) -> None:
    """Writes metrics.json, episodes.csv and paths.png."""
    from pipelines.images_table import write_text

    told: dict[str, object] = {
        "rooms": len(totals(episodes)),
        "model": _known(found),
        "expected": promise(totals(episodes)),
    }
    if against:
        told |= {"above_champion": _known(against), "champion_version": int(champion)}
    write_text(out / "metrics.json", json.dumps(told, indent=2) + "\n")
    write_text(out / "episodes.csv", write_counts(episodes))
    draw_paths(episodes, out / "paths.png", site)


def _known(found: Figures) -> dict[str, float]:
    return {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}


def _log(tracked: Run, episodes: list[Episode], found: Figures, against: Figures, name: str, champion: str) -> None:
    rooms = totals(episodes)
    promised = promise(rooms)
    tracked.metrics({"simulate/rooms": len(rooms), **{f"simulate/{figure}": value for figure, value in found.items()}})
    tracked.metrics({f"{EXPECTED}{figure}": value for figure, value in promised.items()})  # for the passport
    tracked.metrics({f"simulate/above_champion/{figure}": value for figure, value in against.items()})
    tracked.artifact(OUT, "simulate")
    tracked.tags({DRIVEN_TAG: name, **({"simulate.champion": champion} if against else {})})


def told(found: Figures, against: Figures, suite: SuiteSettings, champion: str) -> list[str]:
    """The outcome in a few lines.

    Args:
        found: what `measure` gave, as `against`.
        suite: with as many rooms as were driven.
        champion: version that was compared with.
    """
    lines = [
        f"{suite.rooms} rooms, {suite.driven_s:.0f} s of driving: "
        f"{_sure(found, 'collisions_per_100m', '.1f')} collisions per 100 m, "
        f"{_sure(found, 'distance_m_per_min', '.1f')} m a minute",
        f"stuck {_sure(found, 'stuck_share', '.0%')} of the time, stopped for nothing "
        f"{_sure(found, 'false_stop_share', '.0%')} of the free time, "
        f"missed {_sure(found, 'missed_share', '.0%')} of the blocked",
    ]
    if against:
        lines.append(
            f"against version {champion}, the champion, in the same rooms: "
            f"{_sure(against, 'collisions_per_100m', '+.1f')} collisions per 100 m, "
            f"{_sure(against, 'distance_m_per_min', '+.1f')} m a minute"
        )
    return lines


def _sure(found: Figures, name: str, form: str) -> str:
    value, low, high = (found[key] for key in (name, f"{name}_low", f"{name}_high"))
    if not math.isfinite(value):
        return "an unknown number of"
    return f"{value:{form}} ({low:{form}} to {high:{form}})" if math.isfinite(low) else f"{value:{form}}"


@click.command(context_settings={"show_default": True})
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=lambda: min(16, len(os.sched_getaffinity(0))),
    show_default="as many as cores",
    help="Rooms driven at once; the figures do not depend on it.",
)
def command(processes: int) -> None:
    """Stage `simulate`: drive the exported network through rooms that it has never seen, and count what it hits.

    Reads build/export, the block `simulate` of params.yaml and the limits of driving in its block `gates`, writes
    build/simulate, logs to the MLflow run. Drives on, up to simulate.max_rooms, while a limit is within the interval.

    \b
    Examples:
      dvc repro simulate
      dvc metrics show
    """
    from pipelines.register import read_report

    log_to_stderr("WARNING")
    most, gates, report = block(SuiteSettings), block(GateParams), read_report(EXPORT)
    limits = Limits(gates.max_collisions_per_100m, gates.min_distance_m_per_min)
    model = EXPORT / "model.onnx"
    with Run.resume() as tracked:
        episodes = drive_until_sure(model, report.decision, most, limits, processes)
        suite = most.of(len(totals(episodes)))
        name = key(report.onnx_sha256, report.decision, suite)
        champion = compare_with_champion(report, suite, processes)
        found, against = measure(episodes, champion, len(most.looks))
        number = champion.version if champion else ""
        write(episodes, found, against, number, OUT, suite.site)
        make_clip(Network(model, report.decision), suite, episodes, OUT / "clip.gif")
        _log(tracked, episodes, found, against, name, number)
    for line in told(found, against, suite, number):
        click.echo(line)
    if undecided(found, limits):
        click.echo(f"not sure after {suite.rooms} rooms on which side of a limit in `gates` it is: it will be refused")


if __name__ == "__main__":
    run(command)
