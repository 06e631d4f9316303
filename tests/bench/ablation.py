"""`python -m tests.bench.ablation`: what each part of the recipe gives in rooms that training has not seen.

Each source of the real images in turn is left out; the network learns from the others and from simulated rooms, and is
judged on the one left out. The threshold is chosen on the other sources, as the stage `unseen` does. Then the same
again without one part of the recipe, one after the other.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import click
import msgspec
import numpy as np

from serving.command_line import run
from serving.errors import OperatorError
from tests.bench.real_sets import decode, find, rows_of, simulate
from training import cross_validation, metrics
from training.cross_validation import Judged
from training.dataset import Images, Row
from training.settings import AUGMENTATIONS, TrainSettings

OUT = Path("build/bench/ablation.json")
BALANCED_ACCURACY, BLOCKED_RECALL = 0.85, 0.90  # wanted of the whole recipe; less is told by the exit code
WHOLE = "the whole recipe"


class Recipe(NamedTuple):
    settings: TrainSettings
    rooms: int  # of the simulated images that are learned from
    real: bool = True  # whether real images are learned from


class Corpus(NamedTuple):
    """All images at hand: the real ones, then the simulated ones."""

    rows: List[Row]
    pixels: np.ndarray  # (N, 224, 224, 3) uint8
    labels: np.ndarray  # (N,) int64
    images_per_room: int


def recipes(settings: TrainSettings, rooms: int) -> Dict[str, Recipe]:
    """The recipe, and the recipe without each of its parts."""
    change = msgspec.structs.replace
    found = {
        WHOLE: Recipe(settings, rooms),
        "without simulated rooms": Recipe(settings, 0),
        "simulated rooms alone": Recipe(settings, rooms, real=False),
        "half of the simulated rooms": Recipe(settings, rooms // 2),
        "without weights of ImageNet": Recipe(change(settings, weights="none"), rooms),
        "the last layer alone": Recipe(change(settings, finetune="head"), rooms),
        "without any variation": Recipe(change(settings, augment=()), rooms),
    }
    for kind in AUGMENTATIONS:
        others = tuple(other for other in AUGMENTATIONS if other != kind)
        found[f"without the variation `{kind}`"] = Recipe(change(settings, augment=others), rooms)
    return found


def leave_out(recipe: Recipe, corpus: Corpus) -> Judged:
    """Every real image, judged by a network that has not seen its source."""
    from training.fit import fit, infer
    from training.machine import seed_everything
    from training.model import Network, load_weights

    place = {row.image: index for index, row in enumerate(corpus.rows)}
    learned = [row for row in corpus.rows if not row.simulated]
    learned += [row for row in corpus.rows if row.simulated][: recipe.rooms * corpus.images_per_room]
    trained: Dict[str, Any] = {}

    def train(name: str, training: List[Row], judged: List[Row]) -> np.ndarray:
        rows = [row for row in training if recipe.real or row.simulated]
        key = name if recipe.real else "once"  # without real images all folds are the same training
        if key not in trained:
            trained.clear()
            at = [place[row.image] for row in rows]
            seed_everything(recipe.settings.seed)
            network = Network(recipe.settings.backbone, recipe.settings.resolution)
            load_weights(network, recipe.settings.weights)
            images = Images(rows, corpus.pixels[at], corpus.labels[at])
            trained[key] = fit(network, recipe.settings, images, None).network
        return infer(trained[key], corpus.pixels[[place[row.image] for row in judged]])

    return cross_validation.leave_out(learned, [[source] for source in cross_validation.sources(learned)], train)


def report(judged: Judged, recall: float) -> Dict[str, Dict[str, float]]:
    """By set, and the mean over the sets: what the robot would do with the threshold that the other sources choose.

    Args:
        judged: answers.
        recall: blocked recall that the threshold is chosen to reach.
    """
    chosen = cross_validation.choices(judged, recall)
    found: Dict[str, Dict[str, float]] = {}
    for name in dict.fromkeys(row.session for row in judged.rows):
        own = np.array([row.session == name for row in judged.rows])
        choice = chosen[next(row.source for row in judged.rows if row.session == name)]
        labels, logits = judged.labels[own], judged.logits[own]
        p_blocked = metrics.probabilities(logits, choice.temperature)
        there = metrics.measure(labels, p_blocked, choice.threshold)
        plain = metrics.measure(labels, metrics.probabilities(logits), 0.5)
        found[name] = {
            "balanced_accuracy": there["balanced_accuracy"],
            "blocked_recall": there["blocked_recall"],
            "roc_auc": there["roc_auc"],
            "calibration_error": there["calibration_error"],
            "balanced_accuracy_at_half": plain["balanced_accuracy"],
            "blocked_recall_at_half": plain["blocked_recall"],
            "calibration_error_uncalibrated": plain["calibration_error"],
        }
    found["mean"] = {key: float(np.mean([one[key] for one in found.values()])) for key in next(iter(found.values()))}
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--rooms", default=200, help="Simulated rooms that are learned from.")
@click.option("--images", default=20, help="Simulated images of each room.")
@click.option("--resolution", default=112, help="112 or 224.")
@click.option("--epochs", default=14)
@click.option("--learning-rate", default=0.0005)
@click.option("--seed", default=1)
@click.option("--recall", default=0.9, help="Blocked recall that thresholds are chosen to reach.")
@click.option("--only", multiple=True, help="Part of a row's name: only such rows.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures; rows in it are not run again.")
def command(
    data: Path,
    weights: Path,
    rooms: int,
    images: int,
    resolution: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    recall: float,
    only: Tuple[str, ...],
    out: Path,
) -> None:
    """Measure the recipe on sources it has not seen, whole and without each of its parts.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it. Each row is a training for
    each source: with three sources a few minutes, so that the whole table takes an hour; interrupted, it goes on with
    the row it was at. Exits with 1 if the whole recipe misses a balanced accuracy of 0.85 or a recall of 0.90.

    Example: python -m tests.bench.ablation --data ../jetbot --weights mobilenet_v2.pth --only whole
    """
    from rich.console import Console

    from training.model import backbone_of

    console = Console()
    settings = TrainSettings(
        backbone=backbone_of(weights),
        weights=str(weights),
        resolution=resolution,  # type: ignore[arg-type]
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
    )
    wanted = {
        name: recipe
        for name, recipe in recipes(settings, rooms).items()
        if not only or any(part in name for part in only)
    }
    if not wanted:
        raise OperatorError(f"no row's name has one of {', '.join(only)} in it: {', '.join(recipes(settings, rooms))}")
    corpus = gather(data, max(recipe.rooms for recipe in wanted.values()), images, console)
    done: Dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for name, recipe in wanted.items():
        key = _key(recipe, corpus, recall)
        if done.get(name, {}).get("key") != key:
            console.print(f"[bold]{name}")
            found = report(leave_out(recipe, corpus), recall)
            done[name] = {"key": key, "sets": found}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(done, indent=2) + "\n")
        console.print(f"{name}: {_line(done[name]['sets']['mean'])}")
    _show(console, {name: done[name]["sets"] for name in wanted})
    console.print(f"figures in {out}")
    whole = done.get(WHOLE, {}).get("sets", {}).get("mean")
    if whole and (whole["balanced_accuracy"] < BALANCED_ACCURACY or whole["blocked_recall"] < BLOCKED_RECALL):
        raise SystemExit(1)


def gather(data: Path, rooms: int, images: int, console: Any) -> Corpus:
    """Decodes the real images and renders the simulated ones."""
    pictures = find(data)
    rows = rows_of(pictures)
    if len(cross_validation.sources(rows)) < 2:
        raise OperatorError(f"{data} has images of one source: two at least are needed to leave one out")
    pixels, labels = decode(pictures)
    with console.status("simulating rooms") as status:
        more, frames = simulate(rooms, images, lambda room: status.update(f"simulating rooms: {room} of {rooms}"))
    made = np.array([metrics.BLOCKED if row.label == "blocked" else 1 - metrics.BLOCKED for row in more], np.int64)
    return Corpus(rows + more, np.concatenate([pixels, frames]), np.concatenate([labels, made]), images)


def _key(recipe: Recipe, corpus: Corpus, recall: float) -> str:
    """Names a row: equal where it would be trained on the same images in the same way."""
    some = corpus.pixels[:: max(1, len(corpus.rows) // 100)]
    about = repr((recipe, corpus.images_per_room, recall, len(corpus.rows)))
    return hashlib.sha256(about.encode() + some.tobytes()).hexdigest()


def _line(mean: Dict[str, float]) -> str:
    return (
        f"balanced accuracy {mean['balanced_accuracy']:.3f}, blocked recall {mean['blocked_recall']:.3f}, "
        f"AUC {mean['roc_auc']:.3f}"
    )


def _show(console: Any, found: Dict[str, Dict[str, Dict[str, float]]]) -> None:
    from rich.table import Table

    sets = [name for name in next(iter(found.values())) if name != "mean"]
    table = Table(title="sources not seen: means over the sets, then balanced accuracy / AUC by set")
    for column in ("", "balanced accuracy", "(at 0.5)", "blocked recall", "AUC", *(name[:14] for name in sets)):
        table.add_column(column, justify="right" if column else "left")
    for name, by_set in found.items():
        mean = by_set["mean"]
        keys = ("balanced_accuracy", "balanced_accuracy_at_half", "blocked_recall", "roc_auc")
        each = (f"{by_set[one]['balanced_accuracy']:.2f} / {by_set[one]['roc_auc']:.2f}" for one in sets)
        table.add_row(name, *(f"{mean[key]:.3f}" for key in keys), *each)
    console.print(table)


if __name__ == "__main__":
    run(command)
