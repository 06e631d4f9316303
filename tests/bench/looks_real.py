"""`python -m tests.bench.looks_real`: do the simulator's images look real to a network?

Trained on simulated images alone, then on real ones with and without the simulated ones, and each time judged on a real
set whose source (the team that made it) was in no training image. At a probability of one half, as nothing better could
be chosen without images of the place. The project's own training: `training.fit`, frozen features and a head unless all
layers are asked for. The arena was made while looking at five sets: on those, the figures are an upper end.
"""

import json
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import click
import numpy as np

from serving.command_line import run
from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from training.dataset import Images, Row
from training.settings import TrainSettings

OUT = Path("build/bench/looks_real.json")
LEAST_ALONE = 0.75  # mean balanced accuracy of simulated images alone
WAYS = ("simulated alone", "other real sources", "both")


class Data(NamedTuple):
    """Real and simulated images together."""

    rows: List[Row]  # the set stands for the session
    inputs: np.ndarray  # pixels, or features (frozen.py)
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> "Data":
        return Data([row for row, kept in zip(self.rows, chosen, strict=True) if kept], *(a[chosen] for a in self[1:]))


Trained = Callable[[Data, Data, int], np.ndarray]  # (learned, judged, seed) -> (N, 2) logits


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of real sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--rooms", type=click.IntRange(1), default=80, help="Simulated, each another.")
@click.option("--images", type=click.IntRange(2), default=16, help="Simulated, of each room.")
@click.option("--finetune", type=click.Choice(["head", "all"]), default="head", help="head: minutes; all: hours.")
@click.option("--resolution", type=click.Choice(["112", "224"]), default="224", help="The network's.")
@click.option("--epochs", type=click.IntRange(1), default=16, help="As in params.yaml.")
@click.option("--learning-rate", type=float, default=0.002, help="As in params.yaml.")
@click.option(
    "--repeats", type=click.IntRange(1), default=1, help="With other seeds, of which a head knows none; means."
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(
    data: Path,
    weights: Path,
    rooms: int,
    images: int,
    finetune: str,
    resolution: str,
    epochs: int,
    learning_rate: float,
    repeats: int,
    out: Path,
) -> None:
    """Judge real images by networks that learned from simulated ones, from other real ones, and from both.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it; two sources at least.
    Writes build/bench/looks_real.json; features are kept beside it for the next time. Exits with 1 if simulated images
    alone give less than 0.75 on average, or if adding them to the real ones lowers the average.

    Example: python -m tests.bench.looks_real --data ../jetbot --weights mobilenet_v2.pth --rooms 20 --repeats 1
    """
    from tests.bench.frozen import settings_of

    settings = settings_of(weights, int(resolution), epochs, learning_rate, finetune)
    every = gather(data, rooms, images, settings)
    if len({row.source for row in every.rows if not row.simulated}) < 2:
        raise OperatorError(f"{data} holds one source; leaving sources out needs two")
    found = judge(every, trainer(settings), repeats)
    report: Dict[str, Any] = {
        "backbone": settings.backbone,
        "finetune": finetune,
        "resolution": settings.resolution,
        "simulated_images": rooms * images,
        "repeats": repeats,
        "sets": found,
        "mean": mean_of(found),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    click.echo(f"figures in {out}")
    mean = {way: report["mean"][way]["balanced_accuracy"] for way in WAYS}
    if mean["simulated alone"] < LEAST_ALONE or mean["both"] < mean["other real sources"]:
        raise SystemExit(1)


def gather(data: Path, rooms: int, images: int, settings: TrainSettings) -> Data:
    """Real and simulated images; of frozen networks, their features.

    Raises:
        OperatorError: DATA holds no image.
    """
    from rich.progress import Progress

    from tests.bench.frozen import features_of
    from tests.bench.real_sets import decode, find, rows_of, simulate

    pictures = find(data)
    real, labels = decode(pictures)
    with Progress(transient=True) as progress:
        bar = progress.add_task("simulated rooms", total=rooms)
        rows, pixels = simulate(rooms, images, lambda made: progress.update(bar, completed=made))
    made_up = np.array([LABELS.index(row.label) for row in rows], dtype=np.int64)
    inputs = [real, pixels]
    if settings.finetune == "head":
        inputs = [features_of(some, settings) for some in inputs]
    return Data([*rows_of(pictures), *rows], np.concatenate(inputs), np.concatenate([labels, made_up]))


def trainer(settings: TrainSettings) -> Trained:
    """Trains a network on some images, and gives its answers about others."""
    if settings.finetune == "head":
        return lambda learned, judged, seed: _head(settings, learned, judged, seed)
    return lambda learned, judged, seed: _whole(settings, learned, judged, seed)


def _head(settings: TrainSettings, learned: Data, judged: Data, seed: int) -> np.ndarray:
    from tests.bench.frozen import logits_of, train_head

    return logits_of(train_head(*learned, settings, seed), judged.inputs)


def _whole(settings: TrainSettings, learned: Data, judged: Data, seed: int) -> np.ndarray:
    import msgspec
    import torch

    from training.fit import fit
    from training.inference import infer
    from training.model import Network, load_weights

    torch.manual_seed(seed)
    network = Network(settings.backbone, settings.resolution)
    load_weights(network, settings.weights)
    return infer(fit(network, msgspec.structs.replace(settings, seed=seed), Images(*learned), None).network, judged[1])


def judge(every: Data, train: Trained, repeats: int) -> Dict[str, Dict[str, Dict[str, float]]]:
    """Set -> way of training -> figures on that set, as means over the seeds."""
    simulated = np.array([row.simulated for row in every.rows])
    source = np.array([row.source for row in every.rows])
    set_of = np.array([row.session for row in every.rows])
    names: Sequence[str] = sorted(set(set_of[~simulated]))
    figures: Dict[str, Dict[str, List[Dict[str, float]]]] = {name: {way: [] for way in WAYS} for name in names}
    for seed in range(1, repeats + 1):
        for left_out in sorted(set(source[~simulated])):
            judged = every.take(source == left_out)
            kinds = (simulated, ~simulated & (source != left_out), source != left_out)
            for way, learned in zip(WAYS, kinds, strict=True):
                logits = train(every.take(learned), judged, seed)
                for name in sorted({row.session for row in judged.rows}):
                    own = np.array([row.session == name for row in judged.rows])
                    figures[name][way].append(_figures(judged.labels[own], logits[own]))
    return {name: {way: _mean(found) for way, found in ways.items()} for name, ways in figures.items()}


def _figures(labels: np.ndarray, logits: np.ndarray) -> Dict[str, float]:
    from training import metrics

    found = metrics.measure(labels, metrics.probabilities(logits), 0.5)
    return {name: float(found[name]) for name in ("balanced_accuracy", "roc_auc")}


def _mean(found: Sequence[Dict[str, float]]) -> Dict[str, float]:
    return {name: round(statistics.fmean(one[name] for one in found), 4) for name in found[0]}


def mean_of(found: Dict[str, Dict[str, Dict[str, float]]]) -> Dict[str, Dict[str, float]]:
    """Way of training -> mean over the sets, which count the same."""
    return {way: _mean([ways[way] for ways in found.values()]) for way in WAYS}


def show(report: Dict[str, Any]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    title = f"{report['backbone']} at {report['resolution']}, {report['finetune']}: balanced accuracy / AUC"
    table = Table("real set, judged", *(f"learned from {way}" for way in WAYS), title=title)
    for name, ways in [*report["sets"].items(), ("mean", report["mean"])]:
        table.add_row(name, *(f"{ways[way]['balanced_accuracy']:.3f} / {ways[way]['roc_auc']:.3f}" for way in WAYS))
    Console(width=140).print(table)


if __name__ == "__main__":
    run(command)
