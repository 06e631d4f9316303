"""`python -m tests.bench.train`: the Jetbot notebook's recipe and ours, side by side: time, and accuracy unseen.

Each source in turn is left out. Both recipes learn from the same images, of the other sources, from the same weights of
the same network, and are judged on the source left out, at a probability of one half. The notebook's recipe is that of
NVIDIA's collision_avoidance train_model.ipynb: ImageFolder, colour jitter, batches of 8, SGD 0.001/0.9, 30 epochs, the
epoch kept that is best on 50 images drawn at random. Ours is `training.fit`, with each of its two ways. Times hold
decoding, training and judging each epoch.
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
from serving.files import write_atomic
from tests.bench import real_sets
from tests.bench.real_sets import Picture, accuracy_line, decode, find
from training import metrics
from training.machine import cores
from training.settings import TrainSettings

OUT = Path("build/bench/train.json")
LEAST_SPEEDUP = 10.0  # less is told by the exit code
NOTEBOOK = "notebook"
NOTEBOOK_VALIDATION = 50  # images


class Result(NamedTuple):
    """Of one training."""

    seconds: float
    images_per_s: float  # passes of an image through the training, not counting those that judge
    balanced_accuracy: float
    blocked_recall: float
    roc_auc: float


Training = Tuple[str, str, int]  # name of the recipe, source left out, seed
Recipe = Callable[[List[Picture], List[Picture], int], Result]  # (learned, judged, seed)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of sets.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="ImageNet weights, .pth.")
@click.option("--unseen", help="Source that is left out.  [default: each in turn]")
@click.option("--repeats", default=1, help="Of all trainings, with other seeds.")
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
    """Train by the notebook's recipe and by ours on the same images, and judge both on sources left out.

    DATA holds a folder for each set, called SOURCE_anything, with blocked/ and free/ in it. Times are medians over the
    trainings, accuracies means. Exits with 1 if neither of ours (`blocks` at 112 pixels, the last layer at 224) is ten
    times as quick and as accurate. Let nothing else run meanwhile: with three sources and 837 images the notebook's
    recipe takes over an hour on two cores. Interrupted, the same command goes on with the training it was at.

    Example: python -m tests.bench.train --data ../jetbot --weights mobilenet_v2.pth --unseen anna
    """
    import msgspec
    from rich.console import Console

    console = Console()
    pictures = find(data)
    sources = sorted({picture.source for picture in pictures})
    if len(sources) < 2 or (unseen and unseen not in sources):
        raise OperatorError(f"{data} has the sources {', '.join(sources)}; two are needed, and --unseen names one")
    settings = real_sets.recipe(weights, epochs, averaged)
    head = msgspec.structs.replace(settings, resolution=224, finetune="head", averaged=1)
    recipes: Dict[str, Recipe] = {
        "ours, blocks": lambda learned, judged, seed: ours(learned, judged, settings, seed),
        "ours, last layer": lambda learned, judged, seed: ours(learned, judged, head, seed),
        NOTEBOOK: lambda learned, judged, seed: notebook(learned, judged, settings, notebook_epochs, seed),
    }
    about = {
        "backbone": settings.backbone,
        "images": {source: sum(picture.source == source for picture in pictures) for source in sources},
        "epochs": {"notebook": notebook_epochs, "ours": epochs},
        "averaged": averaged,
        "cores": cores(),
    }
    wanted = [
        (name, source, seed)
        for seed in range(1, repeats + 1)
        for source in ([unseen] if unseen else sources)
        for name in recipes
    ]
    runs = _begun(out, about, wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, source, seed in wanted:
        if (name, source, seed) not in runs:
            with console.status(f"{name}, without {source}, seed {seed}"):
                learned = [picture for picture in pictures if picture.source != source]
                judged = [picture for picture in pictures if picture.source == source]
                runs[name, source, seed] = recipes[name](learned, judged, seed)
            _write(out, about, runs, {})
        result = runs[name, source, seed]
        console.print(
            f"{name}, without {source}, seed {seed}: {result.seconds:.1f} s, {accuracy_line(result._asdict())}"
        )
    told = compared(runs)
    _write(out, about, runs, told)
    _show(console, f"{settings.backbone}, judged on sources that training has not seen", told)
    console.print(f"figures in {out}")
    accuracy = {name: result["balanced_accuracy"] for name, result in told["results"].items()}
    as_accurate = [name for name in accuracy if accuracy[name] >= accuracy[NOTEBOOK]]
    if not any(told["speedup"][name] >= LEAST_SPEEDUP for name in as_accurate):
        raise SystemExit(1)


def _begun(out: Path, about: Dict[str, Any], wanted: List[Training]) -> Dict[Training, Result]:
    """What an interrupted command has left of the same trainings; nothing where it had ended: then all is anew.

    Raises:
        OperatorError: it was interrupted in other trainings, which writing would lose.
    """
    try:
        found = json.loads(out.read_text())
        kept = {
            (run["recipe"], run["unseen"], run["seed"]): Result(*(run[key] for key in Result._fields))
            for run in found.get("runs", [])
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    same = all(found.get(key) == value for key, value in about.items())
    if kept and "results" not in found and not (same and kept.keys() <= set(wanted)):
        raise OperatorError(f"{out} is of an interrupted run with other options: repeat them, remove it or give --out")
    runs = {training: kept[training] for training in wanted if training in kept}
    return runs if same and len(runs) < len(wanted) else {}


def _write(out: Path, about: Dict[str, Any], runs: Dict[Training, Result], told: Dict[str, Any]) -> None:
    kept = [
        {"recipe": name, "unseen": source, "seed": seed, **result._asdict()}
        for (name, source, seed), result in runs.items()
    ]
    write_atomic(out, (json.dumps({**about, "runs": kept, **told}, indent=2) + "\n").encode())


def compared(runs: Dict[Training, Result]) -> Dict[str, Dict[str, Any]]:
    """The results of each recipe, and how many times as quick as the notebook's it is on the same images.

    Times are medians over the trainings, accuracies means.
    """
    names = list(dict.fromkeys(name for name, _, _ in runs))
    results, speedup = {}, {}
    for name in names:
        own = {training: result for training, result in runs.items() if training[0] == name}
        of = {key: [getattr(result, key) for result in own.values()] for key in Result._fields}
        results[name] = {
            key: statistics.median(values) if key in ("seconds", "images_per_s") else statistics.fmean(values)
            for key, values in of.items()
        }
        speedup[name] = statistics.median(
            runs[NOTEBOOK, source, seed].seconds / result.seconds for (_, source, seed), result in own.items()
        )
    return {"results": results, "speedup": speedup}


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


def _show(console: Any, title: str, told: Dict[str, Dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title=title)
    for column in ("recipe", "train s", "times as quick", "images/s", "balanced accuracy", "blocked recall", "AUC"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, result in told["results"].items():
        shares = (f"{result[key]:.3f}" for key in ("balanced_accuracy", "blocked_recall", "roc_auc"))
        taken = (f"{result['seconds']:.1f}", f"{told['speedup'][name]:.1f}", f"{result['images_per_s']:.0f}")
        table.add_row(name, *taken, *shares)
    console.print(table)


if __name__ == "__main__":
    run(command)
