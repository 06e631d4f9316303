"""Stage `train`: from the split to a network, logged as one MLflow run.

    reads   params.yaml (train, data.sessions), build/split/split.csv, the session zips
    writes  build/train/model.pt      weights, backbone, resolution
            build/train/history.csv   a line per epoch
            build/train/run.json      the MLflow run, which evaluate, export and register go on with

The outputs appear together at the end: a training that fails leaves no model. Started by `dvc repro` as
`python -m training.train`, on a Xavier NX by JetPack's own Python (`train.python`).
"""

import csv
import getpass
import hashlib
import io
import json
import os
import platform
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, Union

import click
import msgspec

from serving.command_line import log_to_stderr, run
from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from training import lineage
from training.dataset import Row, load, need_both_classes, read_split
from training.machine import cores, seed_everything
from training.pack import CACHE
from training.settings import TrainSettings, read_params
from training.tracking import Run

SPLIT_FILE = Path("build/split/split.csv")
OUT = Path("build/train")
# What earlier stages tell about the data; shown beside the run, and no input of the training.
REPORTS = (
    ("build/validate/report.json", "data/validate"),
    ("build/validate/docs", "data/docs"),
    ("build/split/report.json", "data/split"),
    ("build/split/split.csv", "data/split"),
)


@click.command()
def command() -> None:
    """Stage `train`: train the network that the block `train` of params.yaml describes.

    Reads build/split/split.csv and the session zips; writes build/train/model.pt, history.csv and run.json, and an
    MLflow run where MLFLOW_TRACKING_URI says, or in build/mlflow.

    \b
    Examples:
      dvc repro train
      dvc exp run -S train.backbone=resnet18 -S train.epochs=30
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 dvc repro
      torchrun --nproc-per-node=2 -m training.train      # a process per GPU, or several on CPUs
    """
    from training import distributed

    log_to_stderr("WARNING")
    settings, sessions = read_params()
    parts = read_split(SPLIT_FILE)
    need_both_classes(parts["train"], "train", at_least=4)
    need_both_classes(parts["validation"], "validation", at_least=1)
    seed_everything(settings.seed)
    with distributed.group():
        train(settings, sessions, parts)


def train(settings: TrainSettings, sessions: Path, parts: Dict[str, List[Row]]) -> None:
    """Trains, logs and writes; the steps in their order.

    Raises:
        OperatorError: the weights, the sessions or MLflow cannot be had.
        RejectedError: an image is broken, or the loss stopped being a number.
    """
    from training import distributed, fit, model, precision

    settings = precision.settle(settings)
    network = model.Network(settings.backbone, settings.resolution)
    filled = model.load_weights(network, settings.weights)
    if not distributed.is_main():  # the first process logs and writes
        fit.fit(network, settings, load(parts["train"], sessions), load(parts["validation"], sessions), cache=CACHE)
        return
    hashes = lineage.data_hashes(sessions)
    with Run.start(_run_name(settings, parts), _tags(settings, hashes)) as tracked:
        click.echo(f"MLflow run {tracked.id} in {tracked.file.tracking_uri}")
        training = load(parts["train"], sessions, "reading training images")
        validation = load(parts["validation"], sessions, "reading validation images")
        _log_inputs(tracked, settings, sessions, parts, hashes)
        tracked.params(
            {
                "weights_filled": len(filled),
                "cores": cores(),
                "processes": distributed.size(),
                "machine": platform.node(),
            }
        )

        def on_epoch(line: fit.Epoch) -> None:
            click.echo(
                f"epoch {line.epoch}/{settings.epochs}: loss {line.train_loss:.3f}, on validation "
                f"{line.validation_loss:.3f}, balanced accuracy {line.validation_balanced_accuracy:.3f}"
            )
            tracked.metrics(
                {
                    "train/loss": line.train_loss,
                    "validation/loss": line.validation_loss,
                    "validation/balanced_accuracy_by_epoch": line.validation_balanced_accuracy,
                },
                step=line.epoch,
            )

        fitted = fit.fit(network, settings, training, validation, on_epoch, CACHE)
        OUT.mkdir(parents=True, exist_ok=True)
        model.save(fitted.network, OUT / "model.pt")
        _write(OUT / "history.csv", _history_csv(fitted.history))
        tracked.artifact(OUT / "history.csv", "train")
        _write(OUT / "run.json", json.dumps(msgspec.to_builtins(tracked.file), indent=2) + "\n")


def _run_name(settings: TrainSettings, parts: Dict[str, List[Row]]) -> str:
    weights = settings.weights if settings.weights in ("none", "imagenet") else Path(settings.weights).stem
    start = "from scratch" if weights == "none" else f"{settings.finetune} from {weights}"
    return f"{settings.backbone} {settings.resolution} px, {start}, {len(parts['train'])} images"


def _tags(settings: TrainSettings, hashes: Dict[str, str]) -> Dict[str, str]:
    commit = lineage.commit()
    tags = {
        "lineage.git_commit": commit.sha,
        "lineage.git_dirty": "true" if commit.dirty else "false",
        "lineage.data": json.dumps(hashes, sort_keys=True),
        "mlflow.source.name": "training.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit.sha,
        "mlflow.user": _user(),
    }
    if settings.weights not in ("none", "imagenet"):
        tags["lineage.weights_sha256"] = _sha256(Path(settings.weights))
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _log_inputs(
    tracked: Run, settings: TrainSettings, sessions: Path, parts: Dict[str, List[Row]], hashes: Dict[str, str]
) -> None:
    tracked.params(msgspec.to_builtins(settings))
    digest = hashes.get(str(sessions), "unversioned")
    for part, rows in parts.items():
        tracked.dataset(f"{sessions.name}/{part}", digest, sessions, part, _profile(rows))
        tracked.params({f"images_{part}": len(rows)})
    for path, folder in REPORTS:
        if Path(path).exists():
            tracked.artifact(Path(path), folder)
    tracked.text("\n".join(lineage.environment()) + "\n", "environment/packages.txt")


def _profile(rows: List[Row]) -> Dict[str, Union[int, str]]:
    counts: Dict[str, Union[int, str]] = {label: sum(row.label == label for row in rows) for label in LABELS}
    counts["num_rows"] = len(rows)
    counts["sources"] = ", ".join(sorted({row.source for row in rows}))[:500]
    return counts


def _history_csv(history: Sequence[Tuple[float, ...]]) -> str:
    from training.fit import Epoch

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Epoch._fields)
    writer.writerows([[line[0], *(f"{value:.6f}" for value in line[1:])] for line in history])
    return text.getvalue()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise OperatorError(f"{path} cannot be read ({problem.strerror})") from None


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(str(draft), str(path))


if __name__ == "__main__":
    run(command)
