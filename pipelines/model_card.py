"""The model card: what a person reads in MLflow before setting the alias `champion` (after Mitchell et al. 2019).

Markdown made of the MLflow run and of what the stages before left in build/. Nothing is measured here.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from serving.contracts.releases import MODEL_NAME, ExportReport
from serving.errors import JetloopError, OperatorError
from training.dataset import PARTS, Row, read_split

BUILD = Path("build")
MOST_SOURCES = 10  # lines of the table: MLflow keeps 5,000 characters of a description
MOST_CHARACTERS = 5000
UNSEEN = "unseen"  # metrics of the run with this prefix are those of leave-one-source-out


class Evidence(NamedTuple):
    """What the stages before left in build/."""

    split: Mapping[str, Sequence[Row]]  # part -> its images
    sources: Sequence[Mapping[str, str]]  # lines of build/evaluate/sources.csv


def read_evidence(build: Path = BUILD) -> Evidence:
    """Reads build/split/split.csv and build/evaluate/sources.csv.

    Raises:
        OperatorError: a file is missing or is not what its stage writes.
    """
    path = build / "evaluate/sources.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            sources = [line for line in csv.DictReader(file) if line["source"]]
        return Evidence(read_split(build / "split/split.csv"), sources)
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro evaluate` first") from None
    except JetloopError as problem:
        raise OperatorError(str(problem)) from None


def write_card(run: Any, report: ExportReport, evidence: Evidence) -> str:
    """The card, at most MOST_CHARACTERS long.

    Args:
        run: `mlflow.entities.Run` that trained the network, with what evaluate logged.
        report: export.json.
        evidence: see `read_evidence`.
    """
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    sections = [
        _what_it_is(params, report),
        "## How good it is\n" + _figures(metrics) + "\n\n" + _threshold(metrics, report) + _driving(metrics),
        "## What it was made of\n" + _sources(evidence) + "\n\n" + _digests(tags),
        "## Limits\n" + "\n".join(f"- {limit}" for limit in _limits(metrics, tags, evidence)),
        "## Get it back\n" + _commands(run.info.run_id, tags, report),
    ]
    return "\n\n".join(sections)[:MOST_CHARACTERS]


def _what_it_is(params: Mapping[str, str], report: ExportReport) -> str:
    start = params.get("weights", "none")
    start = "from scratch" if start == "none" else f"from the weights `{_cell(Path(start).name)}`"
    return (
        f"# {MODEL_NAME}: {_cell(report.backbone)}, {params.get('resolution', '?')} px\n"
        "Tells from one camera image of a Jetbot whether its way is blocked. Trained "
        f"{start}; {report.onnx_bytes / 1e6:.1f} MB as ONNX."
    )


def _figures(metrics: Mapping[str, float]) -> str:
    titles = {
        "balanced_accuracy": "balanced accuracy",
        "blocked_recall": "blocked recall",
        "free_recall": "free recall",
        "roc_auc": "area under ROC",
        "calibration_error": "calibration error",
    }
    parts = {UNSEEN: "sources left out of training, mean", "test": "test part"}
    lines = ["| | " + " | ".join(titles.values()) + " |", "| --- " * (len(titles) + 1) + "|"]
    for part, title in parts.items():
        if f"{part}/balanced_accuracy" in metrics:
            counted = f"{title}: {_count(metrics, part, 'images')} images, {_count(metrics, part, 'groups')} views"
            lines.append(f"| {counted} | " + " | ".join(_sure(metrics, f"{part}/{name}") for name in titles) + " |")
    if len(lines) == 2:
        return "Not measured: the run has no metrics of the stage `evaluate`."
    return "\n".join(lines) + "\n\nIn brackets 95 % intervals: what other views of the same places would give."


def _driving(metrics: Mapping[str, float]) -> str:
    """How it drove in the stage `simulate`, where that was asked."""
    titles = {
        "collisions_per_100m": "collisions per 100 m",
        "distance_m_per_min": "m a minute",
        "stuck_share": "of the time stuck",
        "false_stop_share": "of the free time stopped for nothing",
    }
    told = [f"{_sure(metrics, f'simulate/{name}')} {title}" for name, title in titles.items()]
    return "\n\nIn simulated rooms: " + ", ".join(told) + "." if "simulate/distance_m_per_min" in metrics else ""


def _count(metrics: Mapping[str, float], part: str, what: str) -> str:
    return f"{metrics[f'{part}/{what}']:.0f}" if f"{part}/{what}" in metrics else "?"


def _sure(metrics: Mapping[str, Any], name: str) -> str:
    """A metric with its interval, as far as it is known; the values may be text, of a CSV file."""
    value, low, high = (_number(metrics.get(key)) for key in (name, f"{name}_low", f"{name}_high"))
    if not math.isfinite(value):
        return "not known"
    return f"{value:.3f} ({low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else f"{value:.3f}"


def _number(value: Any) -> float:
    return float(value) if value not in (None, "") else math.nan


def _threshold(metrics: Mapping[str, float], report: ExportReport) -> str:
    said = f"A robot turns from a probability of blocked of **{report.decision.blocked_threshold:.3f}**"
    chosen_on = {UNSEEN: "sources left out of training", "validation": "the validation part"}
    part = next((part for part in chosen_on if f"{part}/blocked_recall" in metrics), None)
    told = (
        f"; chosen on {chosen_on[part]}, {metrics[f'{part}/blocked_recall']:.1%} of the blocked found" if part else ""
    )
    return f"{said} (temperature {report.decision.temperature:.2f}){told}."


def _sources(evidence: Evidence) -> str:
    counts = {part: Counter(row.source for row in evidence.split.get(part, [])) for part in PARTS}
    total: Counter[str] = sum(counts.values(), Counter())
    if not total:
        return "The split is not known."
    measured = {line["source"]: line for line in evidence.sources}
    lines = [
        "| source | train | validation | test | balanced accuracy on test | blocked recall on test |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source, _ in total.most_common(MOST_SOURCES):
        images = " | ".join(str(counts[part][source]) for part in PARTS)
        found = measured.get(source, {})
        tested = [_sure(found, name) if found else "–" for name in ("balanced_accuracy", "blocked_recall")]
        lines.append(f"| {_cell(source)} | {images} | {tested[0]} | {tested[1]} |")
    if len(total) > MOST_SOURCES:
        rest = sum(count for _, count in total.most_common()[MOST_SOURCES:])
        lines.append(f"| {len(total) - MOST_SOURCES} more, {rest} images | | | | | |")
    return "\n".join(lines)


def _digests(tags: Mapping[str, str]) -> str:
    hashes = json.loads(tags.get("lineage.data", "{}"))
    if not hashes:
        return "The data has no DVC hash: it was not trained by `dvc repro`."
    return "DVC's hashes: " + ", ".join(f"{path} `{digest}`" for path, digest in sorted(hashes.items()))[:600]


def _limits(metrics: Mapping[str, float], tags: Mapping[str, str], evidence: Evidence) -> list[str]:
    limits = []
    worst = metrics.get("test/blocked_recall_low")
    if worst is not None:
        missed = math.ceil(100 * (1 - worst) - 1e-9)
        limits.append(f"Of 100 blocked views it may miss up to {missed}, even at places like those tested.")
    if f"{UNSEEN}/balanced_accuracy" not in metrics:
        trained = {row.source for row in evidence.split.get("train", [])}
        new = {row.source for row in evidence.split.get("test", [])} - trained
        if not new:
            limits.append(
                "Training has seen every source of the test part: nothing here tells of another place or robot."
            )
    tested = [line for line in evidence.sources if line.get("balanced_accuracy")]
    if len(tested) > 1:
        poor = min(tested, key=lambda line: float(line["balanced_accuracy"]))
        limits.append(f"Weakest at {_cell(poor['source'])}: balanced accuracy {_sure(poor, 'balanced_accuracy')}.")
    limits.append(
        "It judges one image at a time and measures no distance. What its images did not show, such as a step down or "
        "a glass door, it does not know."
    )
    if tags.get("lineage.git_dirty") == "true" and tags.get("lineage.git_commit", "unknown") != "unknown":
        limits.append("Made of files that were not committed: the commit below does not give exactly this network.")
    return limits


def _commands(run_id: str, tags: Mapping[str, str], report: ExportReport) -> str:
    commit = tags.get("lineage.git_commit", "unknown")
    if commit == "unknown":
        return f"It was not trained in a git repository. Run `{run_id}`, ONNX SHA-256 `{report.onnx_sha256}`."
    return (
        f"```\ngit checkout {commit}\ndvc checkout    # on another machine: dvc pull\ndvc repro\n```\n"
        f"Run `{run_id}`, ONNX SHA-256 `{report.onnx_sha256}`."
    )


def _cell(text: str, most: int = 40) -> str:
    """Text of others inside a table: no new line, no column, no markup, not long."""
    plain = "".join(sign if sign.isprintable() and sign not in "|`<>[]*\\" else " " for sign in text)
    plain = " ".join(plain.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
