"""`python -m tests.bench.train`: the Jetbot notebook's recipe and ours, side by side: time, and accuracy unseen.

Both learn from the same images, of all sources but one, from the same weights of the same network, and are judged on
the source left out, at a probability of one half. The notebook's recipe is that of NVIDIA's collision_avoidance
train_model.ipynb: ImageFolder, colour jitter, batches of 8, SGD 0.001/0.9, 30 epochs, the epoch kept that is best on
50 images drawn at random. Ours is `training.fit`, with each of its two ways. Times hold decoding, training and judging
each epoch.
"""

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import click
import numpy as np

from serving.command_line import run
from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from tests.bench import real_sets
from tests.bench.real_sets import Picture, decode, find
from training import metrics
from training.machine import cores
from training.settings import TrainSettings

OUT = Path("build/bench/train.json")
LEAST_SPEEDUP = 10.0  # less is told by the exit code
NOTEBOOK = "notebook"
NOTEBOOK_VALIDATION = 50  # images


class Result(NamedTuple):
    seconds: float
    images_per_s: float  # passes of an image through the training, not counting those that judge
    balanced_accuracy: float
    blocked_recall: float
    roc_auc: float


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--unseen", help="Source that is left out.  [default: the first]")
@click.option("--repeats", default=3, help="Of each recipe, in turns; medians are told.")
@click.option("--notebook-epochs", default=30, help="As in the notebook; fewer only to try this command.")
@click.option("--epochs", default=real_sets.EPOCHS, help="Of our recipe: of all its fine-tunings together.")
@click.option("--averaged", default=real_sets.AVERAGED, help="Fine-tunings of our recipe, whose weights are averaged.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(
    data: Path,
    weights: Path,
    unseen: "str | None",
    repeats: int,
    notebook_epochs: int,
    epochs: int,
    averaged: int,
    out: Path,
) -> None:
    """Train by the notebook's recipe and by ours on the same images, and judge both on a source left out.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it. Writes
    build/bench/train.json and exits with 1 if neither of ours (`blocks` at 112 pixels, the last layer at 224) is ten
    times as quick and as accurate. Let nothing else run meanwhile; the notebook's recipe takes 15 to 27 minutes a time.

    Example: python -m tests.bench.train --data ../jetbot --weights mobilenet_v2.pth --repeats 1
    """
    import msgspec
    from rich.console import Console

    console = Console()
    pictures = find(data)
    sources = sorted({picture.source for picture in pictures})
    left_out = unseen or sources[0]
    if left_out not in sources or len(sources) < 2:
        raise OperatorError(f"{data} has the sources {', '.join(sources)}; two are needed, and --unseen names one")
    learned = [picture for picture in pictures if picture.source != left_out]
    judged = [picture for picture in pictures if picture.source == left_out]
    settings = real_sets.recipe(weights, epochs, averaged)
    head = msgspec.structs.replace(settings, resolution=224, finetune="head", averaged=1)
    recipes: Dict[str, Callable[[int], Result]] = {
        "ours, blocks": lambda seed: ours(learned, judged, settings, seed),
        "ours, last layer": lambda seed: ours(learned, judged, head, seed),
        NOTEBOOK: lambda seed: notebook(learned, judged, settings, notebook_epochs, seed),
    }
    found: Dict[str, List[Result]] = {name: [] for name in recipes}
    for seed in range(1, repeats + 1):
        for name, recipe in recipes.items():
            with console.status(f"{name}, {seed} of {repeats}"):
                found[name].append(recipe(seed))
    told = {name: median(results) for name, results in found.items()}
    theirs = told[NOTEBOOK]
    speedup = {name: theirs.seconds / result.seconds for name, result in told.items()}
    report = {
        "backbone": settings.backbone,
        "unseen": left_out,
        "images": {"learned": len(learned), "judged": len(judged)},
        "epochs": {"notebook": notebook_epochs, "ours": epochs},
        "runs": {name: [result._asdict() for result in results] for name, results in found.items()},
        "median": {name: result._asdict() for name, result in told.items()},
        "speedup": speedup,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    _show(console, report)
    console.print(f"figures in {out}")
    as_accurate = [name for name, result in told.items() if result.balanced_accuracy >= theirs.balanced_accuracy]
    if not any(speedup[name] >= LEAST_SPEEDUP for name in as_accurate):
        raise SystemExit(1)


def median(results: List[Result]) -> Result:
    return Result(*(statistics.median(values) for values in zip(*results, strict=True)))


def ours(learned: List[Picture], judged: List[Picture], settings: TrainSettings, seed: int) -> Result:
    """`training.fit`, on the images as a stage would load them."""
    import msgspec
    import torch

    from training.dataset import Images, Row
    from training.fit import fit
    from training.inference import infer
    from training.model import Network, load_weights

    torch.manual_seed(seed)
    began = time.perf_counter()
    network = Network(settings.backbone, settings.resolution)
    load_weights(network, settings.weights)
    pixels, labels = decode(learned)
    rows = [Row(str(one.path), LABELS[one.label], one.set, one.source, "", "train") for one in learned]
    fitted = fit(network, msgspec.structs.replace(settings, seed=seed), Images(rows, pixels, labels), None)
    seconds = time.perf_counter() - began
    logits = infer(fitted.network, decode(judged)[0])
    passes = 2 if settings.finetune == "head" else settings.epochs  # a head sees each image and its mirror image
    return _result(seconds, passes * len(learned), logits, judged)


def notebook(learned: List[Picture], judged: List[Picture], settings: TrainSettings, epochs: int, seed: int) -> Result:
    """The notebook's cells, for another network: ImageFolder's decoding and transforms at every use."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, random_split

    from training.model import DEVIATION, MEAN, Network, load_weights
    from training.torchvision_shim import torchvision_models

    torchvision_models()  # makes `import torchvision` work beside a torch of another build
    from torchvision import transforms

    torch.manual_seed(seed)
    torch.set_num_threads(cores())  # torch's own choice; ours sets another
    began = time.perf_counter()
    prepare = transforms.Compose(
        [
            transforms.ColorJitter(0.1, 0.1, 0.1, 0.1),
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    data: Any = _Folder(learned, prepare)
    training, validation = random_split(data, [len(data) - NOTEBOOK_VALIDATION, NOTEBOOK_VALIDATION])
    batches = [DataLoader(part, batch_size=8, shuffle=True) for part in (training, validation)]
    network = Network(settings.backbone)
    load_weights(network, settings.weights)
    model = network.backbone
    optimiser = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    best, kept = -1.0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for images, labels in batches[0]:
            optimiser.zero_grad()
            functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches[1])
        if right / NOTEBOOK_VALIDATION > best:
            best, kept = right / NOTEBOOK_VALIDATION, copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - began
    model.load_state_dict(kept)
    plain = transforms.Compose(prepare.transforms[1:])
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in DataLoader(_Folder(judged, plain), batch_size=8)])
    return _result(seconds, epochs * len(training), logits.numpy(), judged)


class _Folder:
    """As torchvision's ImageFolder: decodes and transforms at every use."""

    def __init__(self, pictures: List[Picture], prepare: Callable[[Any], Any]) -> None:
        self._pictures, self._prepare = pictures, prepare

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        from PIL import Image

        with Image.open(self._pictures[index].path) as image:
            return self._prepare(image.convert("RGB")), self._pictures[index].label


def _result(seconds: float, passes: int, logits: np.ndarray, judged: List[Picture]) -> Result:
    labels = np.array([picture.label for picture in judged])
    found = metrics.measure(labels, metrics.probabilities(logits), 0.5)
    return Result(seconds, passes / seconds, found["balanced_accuracy"], found["blocked_recall"], found["roc_auc"])


def _show(console: Any, report: Dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{report['backbone']}, judged on {report['unseen']}, which training has not seen")
    for column in ("recipe", "train s", "times as quick", "images/s", "balanced accuracy", "blocked recall", "AUC"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, result in report["median"].items():
        shares = (f"{result[key]:.3f}" for key in ("balanced_accuracy", "blocked_recall", "roc_auc"))
        taken = (f"{result['seconds']:.1f}", f"{report['speedup'][name]:.1f}", f"{result['images_per_s']:.0f}")
        table.add_row(name, *taken, *shares)
    console.print(table)


if __name__ == "__main__":
    run(command)
