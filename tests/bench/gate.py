"""`python -m tests.bench.gate`: does the closed-loop gate tell good models from bad, and always say the same?

Ten models of known quality (gate_models.py) drive through the same rooms. Asked is whether those that know real images
better hit less: Spearman's rank correlation of balanced accuracy, sources left out, with collisions per 100 m. All
decide at a probability of one half: with the threshold that the project would choose, poor models stand still and hit
nothing. The upper end of the collisions, which the gate judges, counts way as well, as all drive equally long.

And whether the verdict on one model depends on the rooms that it happened to be driven in: each of 100 repeats is the
stage `simulate` and the gate, with rooms drawn with replacement from all that the model drove here. Driving anew each
time would take days; a room that was not driven is in no repeat.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import click
import numpy as np

from serving.command_line import run
from serving.errors import OperatorError
from simulator.scores import Limits, figures, undecided
from simulator.settings import SuiteSettings
from simulator.suite import Counts
from tests.bench.gate_models import LADDER, drive, make
from tests.bench.looks_real import gather

OUT = Path("build/bench/gate.json")
KEPT = Path("build/bench/gate")  # rooms that were driven
LEAST_CORRELATION, LEAST_STABLE = 0.7, 0.95
REPEATS = 100
ACCURACIES = ("balanced_accuracy", "balanced_accuracy_at_half", "roc_auc")
KNOWN, JUDGED = "balanced_accuracy_at_half", "collisions_per_100m"
DRIVING = (JUDGED, "collisions_per_100m_high", "missed_share", "false_stop_share", "stuck_share", "distance_m_per_min")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of real sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--models", type=click.IntRange(2, len(LADDER)), default=len(LADDER), help="Of known quality.")
@click.option("--rooms", type=click.IntRange(2), default=40, help="Driven by each model.")
@click.option("--starts", type=click.IntRange(1), default=2, help="Places in each room: params.yaml's.")
@click.option("--seconds", type=click.FloatRange(5), default=12, help="Of driving from each: params.yaml's.")
@click.option("--simulated-rooms", type=click.IntRange(1), default=80, help="For training; never driven in.")
@click.option("--resolution", type=click.Choice(["112", "224"]), default="112", help="The networks'.")
@click.option("--processes", type=click.IntRange(1), default=2, help="Rooms driven at once.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(
    data: Path,
    weights: Path,
    models: int,
    rooms: int,
    starts: int,
    seconds: float,
    simulated_rooms: int,
    resolution: str,
    processes: int,
    out: Path,
) -> None:
    """Compare how models judge real images with how they drive, and how steady the gate's verdict is.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it. Writes
    build/bench/gate.json. Rooms that were driven are kept in build/bench/gate: interrupted, it goes on where it was.
    Exits with 1 if the rank correlation of the accuracy and the collisions per 100 m is above -0.7, or a model's
    verdict is the same in fewer than 95 of 100 repeats.

    Example: python -m tests.bench.gate --data ../jetbot --weights mobilenet_v2.pth --rooms 20
    """
    from tests.bench.frozen import settings_of

    settings, limits = settings_of(weights, int(resolution), 16, 0.002, "head"), limits_of_gates()
    suite = SuiteSettings(rooms=rooms, starts=starts, seconds=seconds)
    every = gather(data, simulated_rooms, 16, settings)
    steps = [LADDER[number] for number in np.linspace(0, len(LADDER) - 1, models).round().astype(int)]
    made = [make(every, step, settings) for step in steps]
    found: List[Dict[str, Any]] = []
    for number, (step, model) in enumerate(zip(steps, made, strict=True), 1):
        counted = drive(model, suite, processes, KEPT, f"driving, model {number} of {models}")
        about = {
            "images": model.images,
            "wrong_labels": step.wrong,
            **{name: model.figures[name] for name in ACCURACIES},
        }
        found.append({**about, **figures(counted), **repeated(counted, limits), "counts": counted})
    spearman = correlations(found)
    report = {
        "backbone": settings.backbone,
        "resolution": settings.resolution,
        "rooms": rooms,
        "looks": stage().looks,
        "limits": limits._asdict(),
        "models": [{key: value for key, value in one.items() if key != "counts"} for one in found],
        "spearman": spearman,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    click.echo(f"figures in {out}")
    least = min(one["until_sure"]["same_verdict"] for one in found)
    if not spearman[KNOWN][JUDGED] <= -LEAST_CORRELATION or least < LEAST_STABLE:
        raise SystemExit(1)


def stage() -> SuiteSettings:
    """How many rooms the stage `simulate` drives, in params.yaml."""
    from pipelines.params import block

    return block(SuiteSettings)


def limits_of_gates() -> Limits:
    """The gate's limits in params.yaml.

    Raises:
        OperatorError: there are none.
    """
    from pipelines.params import GateParams, block

    found = block(GateParams)
    if found.max_collisions_per_100m is None or found.min_distance_m_per_min is None:
        raise OperatorError("params.yaml sets no gates.max_collisions_per_100m or no gates.min_distance_m_per_min")
    return Limits(found.max_collisions_per_100m, found.min_distance_m_per_min)


def repeated(rooms: Mapping[int, Counts], limits: Limits) -> Dict[str, Dict[str, float]]:
    """How steady the verdict is with as many rooms as the stage drives at first, and driven until it is sure."""
    looks = stage().looks
    return {"at_once": stability(rooms, looks[:1], limits), "until_sure": stability(rooms, looks, limits)}


def stability(
    rooms: Mapping[int, Counts], looks: Sequence[int], limits: Limits, repeats: int = REPEATS
) -> Dict[str, float]:
    """How often the gate would say what it says mostly, over suites drawn with replacement from the rooms.

    Args:
        rooms: that were driven.
        looks: after how many rooms it is looked at whether the verdict is sure.
        limits: of the gate.
        repeats: suites.
    """
    rng, every = np.random.default_rng(1), list(rooms.values())
    passed, unsure, driven = 0, 0, 0
    for _ in range(repeats):
        drawn = dict(enumerate(every[place] for place in rng.integers(0, len(every), looks[-1])))
        for count in looks:
            told = figures({number: drawn[number] for number in range(count)}, looks=len(looks))
            if not (unclear := undecided(told, limits)):
                break
        driven += count
        unsure += unclear
        passed += passes(told, limits)
    return {
        "passes": passed / repeats,
        "same_verdict": max(passed, repeats - passed) / repeats,
        "unsure": unsure / repeats,
        "rooms": driven / repeats,
    }


def passes(told: Mapping[str, float], limits: Limits) -> bool:
    """Whether the release service's gates of driving let a model pass with these figures."""
    import msgspec

    from pipelines.params import GateParams, block
    from pipelines.release.gates import driving_gates

    gate = msgspec.structs.replace(block(GateParams), **limits._asdict())
    metrics = {f"simulate/{name}": value for name, value in told.items() if np.isfinite(value)}
    return all(one.passed for one in driving_gates(metrics, gate))


def correlations(found: Sequence[Mapping[str, Any]]) -> Dict[str, Dict[str, float]]:
    """Spearman's rank correlation of each accuracy with each figure of driving; what has no figure is left out."""
    from scipy.stats import spearmanr

    table: Dict[str, Dict[str, float]] = {}
    for accuracy in ACCURACIES:
        table[accuracy] = {}
        for name in DRIVING:
            known = [(one[accuracy], one[name]) for one in found if np.isfinite(one[name])]
            if len({value for _, value in known}) > 1:  # where all are the same there is no order
                table[accuracy][name] = float(spearmanr(*zip(*known, strict=True)).statistic)
    return table


def show(report: Mapping[str, Any]) -> None:
    """Prints the tables."""
    from rich.console import Console
    from rich.table import Table

    console, looks = Console(width=160), report["looks"]
    columns = ("images", "wrong", "accuracy (at 0.5) / AUC", "collisions per 100 m", "m a minute", "missed", "stuck")
    verdicts = (f"{looks[0]} rooms: passes, same", f"{looks[0]} to {looks[-1]}: passes, same", "unsure, rooms")
    table = Table(*columns, *verdicts, title=f"{report['rooms']} rooms driven by each")
    models: List[Mapping[str, Any]] = report["models"]
    for one in models:
        known = "{balanced_accuracy:.3f} ({balanced_accuracy_at_half:.3f}) / {roc_auc:.3f}".format(**one)
        hits = "{collisions_per_100m:.1f} ({collisions_per_100m_low:.1f} to {collisions_per_100m_high:.1f})".format(
            **one
        )
        at_once, sure = (
            f"{one[way]['passes']:.0%}, {one[way]['same_verdict']:.0%}" for way in ("at_once", "until_sure")
        )
        shares = (f"{one['distance_m_per_min']:.1f}", f"{one['missed_share']:.0%}", f"{one['stuck_share']:.0%}")
        doubt = f"{one['until_sure']['unsure']:.0%}, {one['until_sure']['rooms']:.0f}"
        table.add_row(str(one["images"]), f"{one['wrong_labels']:.0%}", known, hits, *shares, at_once, sure, doubt)
    console.print(table)
    for accuracy, with_what in report["spearman"].items():
        told = ", ".join(f"{name} {value:+.2f}" for name, value in with_what.items())
        console.print(f"rank correlation of {accuracy} with: {told}")


if __name__ == "__main__":
    run(command)
