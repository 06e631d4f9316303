"""Ten models of known quality for `tests.bench.gate`: what each knows of real images, and how it drives.

Each is a head on frozen features (frozen.py) that learned from fewer or more images, with wrong labels among them. What
is kept of a drive, a line a start in build/bench/gate, lets an interrupted run go on where it was.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, List, NamedTuple

import numpy as np

from serving.contracts.releases import Decision
from simulator.scores import totals
from simulator.settings import SuiteSettings
from simulator.suite import Counts, Episode, key, read_counts, run_suite, write_counts
from tests.bench.ablation import MEAN, report
from tests.bench.looks_real import Data
from training import cross_validation
from training.settings import TrainSettings

MIN_BLOCKED_RECALL, MISS_COST = 0.9, 2.0  # params.yaml's
# A threshold chosen for a recall makes a poor model timid: it stands still, and hits nothing.
AT_HALF = Decision(blocked_threshold=0.5, temperature=1.0)


class Step(NamedTuple):
    """What a model learns from."""

    share: float  # of each class of each source; a larger share holds the smaller ones
    wrong: float  # of the labels


# Spread over what heads reach, from guessing on; images beyond a few dozen add little, wrong labels take much away.
LADDER = (
    Step(0.06, 0.45),
    Step(0.035, 0.4),
    Step(0.035, 0.3),
    Step(0.06, 0.3),
    Step(0.02, 0.2),
    Step(0.2, 0.3),
    Step(1.0, 0.4),
    Step(0.035, 0.1),
    Step(0.2, 0.2),
    Step(1.0, 0.0),
)


class Model(NamedTuple):
    images: int  # that it learned from
    figures: Dict[str, float]  # on real images of sources left out: ablation.py's, means over the sets
    onnx: bytes


def make(every: Data, step: Step, settings: TrainSettings) -> Model:
    """Trains a model, and those that tell of it how such a model does on sources it has not seen.

    Args:
        every: real and simulated images, as features.
        step: what is learned from.
        settings: with `finetune: head`.
    """
    from pipelines.export import to_onnx
    from tests.bench.frozen import train_head, whole

    chosen, labels = subset(every, step.share), spoilt(every, step.wrong)
    learned = every._replace(labels=labels)
    judged = left_out(learned, chosen, every.labels, settings)
    network = whole(train_head(*learned.take(chosen), settings, 1), settings)
    return Model(int(chosen.sum()), report(judged, MIN_BLOCKED_RECALL, MISS_COST)["sets"][MEAN], to_onnx(network))


def subset(every: Data, share: float) -> np.ndarray:
    """(N,) bool: a share of each class of each source, two at least; a larger share holds the smaller ones."""
    rng = np.random.default_rng(1)
    keys = np.array([f"{row.source} {row.label}" for row in every.rows])
    chosen = np.zeros(len(keys), bool)
    for name in sorted(set(keys)):
        own = rng.permutation(np.flatnonzero(keys == name))
        chosen[own[: max(round(share * len(own)), 2)]] = True
    return chosen


def spoilt(every: Data, wrong: float) -> np.ndarray:
    """(N,) labels of which a share is turned round; a larger share holds the smaller ones."""
    turned = np.random.default_rng(2).random(len(every.labels)) < wrong
    return np.where(turned, 1 - every.labels, every.labels)


def left_out(learned: Data, chosen: np.ndarray, truth: np.ndarray, settings: TrainSettings) -> cross_validation.Judged:
    """Every real image, judged by a head that learned from what is chosen of the other sources."""
    from tests.bench.frozen import logits_of, train_head

    source = np.array([row.source for row in learned.rows])
    real = np.array([not row.simulated for row in learned.rows])
    logits = np.zeros((len(source), 2), np.float32)
    for name in sorted(set(source[real])):
        head = train_head(*learned.take(chosen & (source != name)), settings, 1)
        logits[source == name] = logits_of(head, learned.inputs[source == name])
    return cross_validation.Judged(learned.take(real).rows, truth[real], logits[real])


def drive(model: Model, suite: SuiteSettings, processes: int, folder: Path, title: str) -> Dict[int, Counts]:
    """Room's seed -> counts, for each room of the suite; those that are kept in `folder` are not driven again."""
    from training.progress import track

    kept = folder / f"{key(hashlib.sha256(model.onnx).hexdigest(), AT_HALF, suite.of(2))}.csv"
    done: List[Episode] = read_counts(kept.read_text()) if kept.exists() else []
    seeds = sorted(set(suite.seeds) - {one.seed for one in done})
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="jetloop-gate-") as scratch:
        path = Path(scratch) / "model.onnx"
        path.write_bytes(model.onnx)
        for room in track(run_suite(path, AT_HALF, suite, processes, seeds) if seeds else [], title, len(seeds)):
            done += room
            part = kept.with_suffix(".part")
            part.write_text(write_counts(done))
            part.replace(kept)
    return totals(one for one in done if one.seed in suite.seeds)
