"""`python -m tests.bench.gate`: does the closed-loop gate tell good models from bad, and always say the same?

Models of known quality are heads on frozen features that learned from more or less data (training.fit). Of each is
known how it does on real images of sources that were left out of its training, and how it drives through the suite of
the stage `simulate`. Asked is whether the order is the same (Spearman), and whether the gate's verdict on one model
depends on the rooms that it happened to be driven in: each of 100 repeats is a suite of as many rooms as the gate
drives, drawn with replacement from all rooms driven here, and judged by the limits in params.yaml.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import click
import numpy as np

from serving.command_line import run
from serving.contracts.releases import Decision
from serving.errors import OperatorError
from simulator.scores import figures, totals
from simulator.settings import SuiteSettings
from simulator.suite import Counts, run_suite
from tests.bench.looks_real import Data, gather
from training.settings import TrainSettings

OUT = Path("build/bench/gate.json")
LEAST_CORRELATION, LEAST_STABLE = 0.7, 0.95
REPEATS = 100
SHARES = (0.005, 0.01, 0.02, 0.035, 0.06, 0.1, 0.2, 0.35, 0.6, 1.0)  # of the images, nested
MIN_BLOCKED_RECALL = 0.9  # at which thresholds are chosen: params.yaml's


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of real sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--models", type=click.IntRange(2, len(SHARES)), default=len(SHARES), help="Of known quality.")
@click.option("--rooms", type=click.IntRange(2), default=100, help="Driven by each model.")
@click.option("--seconds", type=click.FloatRange(5), default=12, help="Of driving in each room.")
@click.option("--suite-rooms", type=click.IntRange(2), default=50, help="Of one repeat: what the gate would drive.")
@click.option("--simulated-rooms", type=click.IntRange(1), default=80, help="For training; never driven in.")
@click.option("--resolution", type=click.Choice(["112", "224"]), default="112", help="The networks'.")
@click.option("--epochs", type=click.IntRange(1), default=16, help="As in params.yaml.")
@click.option("--processes", type=click.IntRange(1), default=2, help="Rooms driven at once.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(
    data: Path,
    weights: Path,
    models: int,
    rooms: int,
    seconds: float,
    suite_rooms: int,
    simulated_rooms: int,
    resolution: str,
    epochs: int,
    processes: int,
    out: Path,
) -> None:
    """Compare how models judge real images with how they drive, and how steady the gate's verdict is.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it. Writes
    build/bench/gate.json. Exits with 1 if the rank correlation of accuracy and collisions is above -0.7, or a model's
    verdict is the same in fewer than 95 of 100 repeats.

    Example: python -m tests.bench.gate --data ../jetbot --weights mobilenet_v2.pth --rooms 20 --suite-rooms 10
    """
    from tests.bench.frozen import settings_of

    settings = settings_of(weights, int(resolution), epochs, 0.002, "head")
    suite = SuiteSettings(rooms=rooms, starts=1, seconds=seconds)
    every = gather(data, simulated_rooms, 16, settings)
    shares = [SHARES[number] for number in np.linspace(0, len(SHARES) - 1, models).round().astype(int)]
    found = []
    for share in shares:
        found.append(measure(every, share, settings, suite, processes))
        told = "{images} images, accuracy {balanced_accuracy:.3f}, {collisions_per_100m:.1f} a 100 m"
        click.echo(told.format(**found[-1]))
        write_rooms(found, out)
    stable = [stability(one["rooms"], suite_rooms, limits()) for one in found]
    report = {
        "backbone": settings.backbone,
        "resolution": settings.resolution,
        "rooms": rooms,
        "seconds": seconds,
        "suite_rooms": suite_rooms,
        "limits": {name: getattr(limits(), name) for name in ("max_collisions_per_100m", "min_distance_m_per_min")},
        "models": [
            {**{key: value for key, value in one.items() if key != "rooms"}, **steady}
            for one, steady in zip(found, stable, strict=True)
        ],
        "spearman": correlations(found),
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    click.echo(f"figures in {out}, each model's rooms in {out.stem}_rooms.json")
    least = min(one["same_verdict"] for one in stable)
    if report["spearman"]["collisions_per_100m"] > -LEAST_CORRELATION or least < LEAST_STABLE:  # type: ignore[index]
        raise SystemExit(1)


def write_rooms(found: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Each model's counts of each room, beside the report: another limit or statistic needs no new drive."""
    counts = {str(one["share"]): {room: list(of) for room, of in one["rooms"].items()} for one in found}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.stem}_rooms.json").write_text(json.dumps(counts) + "\n")


def measure(every: Data, share: float, settings: TrainSettings, suite: SuiteSettings, processes: int) -> Dict[str, Any]:
    """A model that learned from a share of the images: its accuracy on sources left out, and how it drives."""
    from pipelines.export import to_onnx
    from tests.bench.frozen import train_head, whole
    from training.progress import track

    some = subset(every, share)
    accuracy, decision = left_out_accuracy(every, some, settings)
    network = whole(train_head(*every.take(some), settings, 1), settings)
    with TemporaryDirectory(prefix="jetloop-gate-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(to_onnx(network))
        driven = track(run_suite(path, decision, suite, processes), f"driving, {share:g} of the images", suite.rooms)
        counted = totals(episode for room in driven for episode in room)
    told = figures(counted)
    return {
        "share": share,
        "images": int(some.sum()),
        "balanced_accuracy": round(accuracy, 4),
        "blocked_threshold": decision.blocked_threshold,
        **{name: round(value, 4) for name, value in told.items()},
        "rooms": counted,
    }


def subset(every: Data, share: float) -> np.ndarray:
    """(N,) bool: a share of each class of each source, two at least; a larger share holds the smaller ones."""
    rng = np.random.default_rng(1)
    keys = np.array([f"{row.source} {row.label}" for row in every.rows])
    chosen = np.zeros(len(keys), bool)
    for key in sorted(set(keys)):
        own = rng.permutation(np.flatnonzero(keys == key))
        chosen[own[: max(round(share * len(own)), 2)]] = True
    return chosen


def left_out_accuracy(every: Data, some: np.ndarray, settings: TrainSettings) -> Tuple[float, Decision]:
    """Mean balanced accuracy over the real sets, each judged without its source at one half; and the threshold that
    the project would choose.

    The first is what the network knows, the second what a robot is given.
    """
    from tests.bench.frozen import logits_of, train_head
    from training import cross_validation, metrics

    source = np.array([row.source for row in every.rows])
    set_of = np.array([row.session for row in every.rows])
    simulated = np.array([row.simulated for row in every.rows])
    logits = np.zeros((len(source), 2), np.float32)
    for left_out in sorted(set(source[~simulated])):
        head = train_head(*every.take(some & (source != left_out)), settings, 1)
        logits[source == left_out] = logits_of(head, every.inputs[source == left_out])
    accuracies = []
    for name in sorted(set(set_of[~simulated])):
        own = set_of == name
        said = metrics.decided(metrics.probabilities(logits[own]), 0.5)
        accuracies.append(metrics.balanced_accuracy(every.labels[own], said))
    real = every.take(~simulated)
    judged = cross_validation.Judged(real.rows, real.labels, logits[~simulated])
    choice = cross_validation.choose(judged, MIN_BLOCKED_RECALL)
    return float(np.mean(accuracies)), Decision(blocked_threshold=choice.threshold, temperature=choice.temperature)


def limits() -> Any:
    """The gate's limits in params.yaml.

    Raises:
        OperatorError: there are none.
    """
    from pipelines.params import GateParams, block

    found = block(GateParams)
    if found.max_collisions_per_100m is None or found.min_distance_m_per_min is None:
        raise OperatorError("params.yaml sets no gates.max_collisions_per_100m or no gates.min_distance_m_per_min")
    return found


def stability(rooms: Mapping[int, Counts], suite_rooms: int, gate: Any, repeats: int = REPEATS) -> Dict[str, Any]:
    """How often the gate would say what it says mostly, over suites drawn with replacement from the rooms."""
    from pipelines.release.gates import driving_gates

    rng, every = np.random.default_rng(1), list(rooms.values())
    passed = 0
    for repeat in range(repeats):
        drawn = {number: every[place] for number, place in enumerate(rng.integers(0, len(every), suite_rooms))}
        metrics = {f"simulate/{name}": value for name, value in figures(drawn, repeat).items() if np.isfinite(value)}
        passed += all(one.passed for one in driving_gates(metrics, gate))
    return {"passes": passed / repeats, "same_verdict": max(passed, repeats - passed) / repeats}


def correlations(found: Sequence[Mapping[str, Any]]) -> Dict[str, float]:
    """Spearman's rank correlation of the accuracy with each figure of driving; models without a figure are left out."""
    from scipy.stats import spearmanr

    names = ("collisions_per_100m", "collisions_per_100m_high", "missed_share", "false_stop_share", "stuck_share")
    table: Dict[str, float] = {}
    for name in (*names, "distance_m_per_min"):
        pairs = [(one["balanced_accuracy"], one[name]) for one in found if np.isfinite(one[name])]
        if len(pairs) > 2:
            table[name] = round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 3)
    return table


def show(report: Mapping[str, Any]) -> None:
    """Prints the two tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    columns = ("images", "accuracy, sources left out", "collisions per 100 m", "m a minute", "missed", "stuck")
    table = Table(*columns, "passes", "same verdict", title=f"{report['rooms']} rooms of {report['seconds']:g} s each")
    models: List[Mapping[str, Any]] = report["models"]
    for one in models:
        collisions = "{collisions_per_100m:.1f} ({collisions_per_100m_low:.1f} to {collisions_per_100m_high:.1f})"
        shares = (f"{one[name]:.0%}" for name in ("missed_share", "stuck_share", "passes", "same_verdict"))
        first = (str(one["images"]), f"{one['balanced_accuracy']:.3f}", collisions.format(**one))
        table.add_row(*first, f"{one['distance_m_per_min']:.1f}", *shares)
    console.print(table)
    told = ", ".join(f"{name} {value:+.2f}" for name, value in report["spearman"].items())
    console.print(f"rank correlation of the accuracy with: {told}")


if __name__ == "__main__":
    run(command)
