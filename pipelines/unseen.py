"""Stage `unseen`: how such a network does in places it has not seen, by leaving each source out in turn.

    reads   params.yaml (train, unseen, evaluate, data.sessions), build/split/split.csv, build/train/run.json, the zips
    writes  build/unseen/metrics.json      the mean over the sources, and each of them, with 95 % intervals
            build/unseen/predictions.csv   every real image with the answer of a network that had not seen its source
            build/unseen/decision.json     temperature and threshold chosen on these (contract `Decision`)
            build/unseen/by_source.png     the same as a figure

This is the figure to go by: frames of drives that training has seen flatter. It takes a training for each source, and
needs two real sources at least; with fewer, metrics.json says so and the rest is not written. The networks themselves
are not kept: the one that is exported has learned from all sources.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any, Dict, List

import click
import numpy as np

from pipelines import decision_file
from pipelines.images_table import write_text
from pipelines.params import EvaluateParams, UnseenParams, block
from serving.command_line import run
from training import cross_validation, figures, intervals, metrics
from training.cross_validation import Choice, Judged
from training.dataset import Row, load, need_both_classes, read_split
from training.machine import seed_everything
from training.pack import CACHE
from training.settings import TrainSettings, read_params
from training.tracking import Run

SPLIT_FILE = Path("build/split/split.csv")
OUT = Path("build/unseen")
FEWEST_SOURCES = 2
SHOWN = ("balanced_accuracy", "blocked_recall")


class Trainer:
    """Trains as `train` does, once for each fold; the trained network gives its answers and is forgotten."""

    def __init__(self, settings: TrainSettings, sessions: Path) -> None:
        self._settings, self._sessions = settings, sessions

    def __call__(self, name: str, training: List[Row], judged: List[Row]) -> np.ndarray:
        from training import precision
        from training.fit import fit
        from training.inference import infer
        from training.model import Network, load_weights

        self._settings = precision.settle(self._settings)
        click.echo(f"leaving out {name}: training on {len(training)} images, judging {len(judged)}")
        need_both_classes(training, f"training (without {name})", at_least=4)
        seed_everything(self._settings.seed)
        network = Network(self._settings.backbone, self._settings.resolution)
        load_weights(network, self._settings.weights)
        fitted = fit(network, self._settings, load(training, self._sessions), None, cache=CACHE)
        return infer(fitted.network, load(judged, self._sessions).pixels, f"judging {name}")


def summaries(judged: Judged, chosen: Dict[str, Choice]) -> List[Dict[str, Any]]:
    """A line for the mean over the sources, which count the same, and one for each; with intervals."""
    source_of = np.array([row.source for row in judged.rows])
    group_of = [row.group for row in judged.rows]
    p_blocked, threshold = np.empty(len(source_of)), np.empty(len(source_of))
    for source, choice in chosen.items():
        own = source_of == source
        p_blocked[own] = metrics.probabilities(judged.logits[own], choice.temperature)
        threshold[own] = choice.threshold
    labels = judged.labels
    lines = [{"source": "mean", **intervals.mean_summary(labels, p_blocked, threshold, group_of, source_of.tolist())}]
    for source in chosen:
        own = source_of == source
        found = intervals.summary(labels[own], p_blocked[own], threshold[own], np.array(group_of)[own].tolist())
        lines.append({"source": source, **found})
    return lines


def write(judged: Judged, lines: List[Dict[str, Any]], choice: Choice, out: Path) -> None:
    """Writes the outputs of the stage."""
    import pandas as pd

    shown = {line["source"]: {k: round(v, 4) for k, v in line.items() if _is_known(v)} for line in lines}
    write_text(out / "metrics.json", json.dumps(shown, indent=2) + "\n")
    table = [
        {"image": row.image, "label": row.label, "source": row.source, "group": row.group, "blocked": a, "free": b}
        for row, (a, b) in zip(judged.rows, judged.logits.round(4).tolist(), strict=True)
    ]
    write_text(out / "predictions.csv", pd.DataFrame(table).to_csv(index=False, lineterminator="\n"))
    decision_file.write(decision_file.make(choice.threshold, choice.temperature), out)
    figures.by_source(lines[1:], out / "by_source.png")


def _is_known(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@click.command()
def command() -> None:
    """Stage `unseen`: train without each real source in turn, and measure on it.

    Writes build/unseen; the metrics are in the MLflow run as unseen/balanced_accuracy and so on.

    \b
    Examples:
      dvc repro unseen
      dvc exp run -S unseen.folds=0     # to leave it out
    """
    params, asked = block(UnseenParams), block(EvaluateParams)
    settings, sessions = read_params()
    every = [row for rows in read_split(SPLIT_FILE).values() for row in rows]
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    found = cross_validation.folds(every, params.folds)
    if len(found) < FEWEST_SOURCES:
        why = "unseen.folds is 0" if not params.folds else "it needs two real sources, each with both classes"
        write_text(OUT / "metrics.json", json.dumps({"not_measured": why}) + "\n")
        click.echo(f"unseen sources are not measured: {why}")
        return
    with Run.resume() as tracked:
        judged = cross_validation.leave_out(every, found, Trainer(settings, sessions))
        lines = summaries(judged, cross_validation.choices(judged, asked.min_blocked_recall, asked.miss_cost))
        choice = cross_validation.choose(judged, asked.min_blocked_recall, asked.miss_cost)
        write(judged, lines, choice, OUT)
        tracked.metrics({f"unseen/{name}": value for name, value in lines[0].items() if _is_known(value)})
        for line in lines[1:]:
            tracked.metrics({f"unseen/{line['source']}/{name}": line[name] for name in SHOWN})
        tracked.artifact(OUT, "unseen")
    if not choice.reached:
        click.echo(
            f"warning: no threshold reaches a blocked recall of {asked.min_blocked_recall} on sources left out",
            err=True,
        )
    for line in lines:
        shown = (f"{name.replace('_', ' ')} {line[name]:.3f} {_interval(line, name)}" for name in SHOWN)
        click.echo(f"{line['source']}: {', '.join(shown)}, AUC {line['roc_auc']:.3f}")


def _interval(line: Dict[str, Any], name: str) -> str:
    return f"({line[f'{name}_low']:.3f} to {line[f'{name}_high']:.3f})"


if __name__ == "__main__":
    run(command)
