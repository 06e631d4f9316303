"""`jetloop trace EVENT_ID`: from an event to the engine, run, commit, data and training images that made it."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from serving.errors import JetloopError, OperatorError
from telemetry.origin import Origin, Step, steps, trace
from telemetry.registry import Run, verify
from telemetry.releases import fetch

_NEAREST = 5  # training images told
_METRICS = ("test/balanced_accuracy", "test/blocked_recall", "test/roc_auc")


@click.command(short_help="From an event to the engine, run, commit and data that made it.")
@click.argument("event_id")
@click.option("--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store.")
@click.option(
    "--releases", "releases_url", default="http://127.0.0.1:8400", show_default=True, help="The release service."
)
@click.option(
    "--mlflow", "mlflow_uri", default="", help="MLflow; when given, the run and the version are checked there."
)
@click.option(
    "--frame",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A frame (JPEG, PNG) of that moment: also tell the training images nearest to it. Needs --mlflow.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(event_id: str, url: str, releases_url: str, mlflow_uri: str, frame: Path | None, as_json: bool) -> None:
    """Answers for one event: robot, engine, release, version, run, commit, data, each with what gets it back.

    EVENT_ID is the event's id or the beginning of it. Exit code 1 when something on the way is not known.

    Robots send no images. With --frame FILE, a frame that you have of that moment, the images of the model's training
    that its own network finds most alike are told too (cosine of its last features), each with what gets it back.

    \b
    jetloop trace 01a2084a-ff8d --mlflow http://127.0.0.1:5000 --frame seen.jpg
    jetloop trace 01a2084a-ff8d --store sqlite:///build/events.db --releases http://127.0.0.1:8400
    """
    from telemetry.store import open_reader

    store = open_reader(url)
    try:
        event = store.event(event_id)
    finally:
        store.close()
    origin = trace(event, fetch(releases_url))
    run: Run | None = None
    problem: JetloopError | None = None
    if mlflow_uri:
        try:
            run = verify(origin.passport.lineage, mlflow_uri)
        except JetloopError as found:
            problem = found
    lines = [_with_run(step, run) for step in steps(origin, releases_url, mlflow_uri)]
    if frame and not problem:
        try:
            lines += _nearest(origin, frame, mlflow_uri)
        except JetloopError as found:
            problem = found
    click.echo(as_text(lines) if not as_json else as_object(origin, lines, run))
    if problem:
        raise problem


def _nearest(origin: Origin, frame: Path, mlflow_uri: str) -> list[Step]:
    if not mlflow_uri:
        raise OperatorError("--frame needs --mlflow: the index of the training images lies there")
    from telemetry import nearest

    lineage = origin.passport.lineage
    index, model = nearest.fetch(lineage, mlflow_uri)
    found = nearest.find(index, model, nearest.read_frame(frame.read_bytes()), _NEAREST)
    return [
        Step(
            what="nearest",
            value=one.image,
            note=f"likeness {one.likeness:.3f}",
            get=nearest.get(one.image, index.sessions, lineage),
        )
        for one in found
    ]


def _with_run(step: Step, run: Run | None) -> Step:
    if run is None or step.what != "run":
        return step
    metrics = [f"{name} {run.metrics[name]:.4g}" for name in _METRICS if name in run.metrics]
    experiment = step.get.replace("/#/runs/", f"/#/experiments/{run.experiment_id}/runs/")
    return msgspec.structs.replace(step, note=", ".join([run.status, *metrics]), get=experiment)


def as_text(lines: Sequence[Step]) -> str:
    """An aligned list: what, value and note, and below them what gets it back."""
    width = max(len(step.what) for step in lines) + 2
    rows = []
    for step in lines:
        rows.append(f"{step.what:<{width}}{step.value}" + (f"  {step.note}" if step.note else ""))
        if step.get:
            rows.append(" " * width + click.style(step.get, dim=True))
    return "\n".join(rows)


def as_object(origin: Origin, lines: Sequence[Step], run: Run | None) -> str:
    """The same as JSON, with the whole passport and, where MLflow was asked, the run."""
    whole = {**msgspec.to_builtins(origin), "run": msgspec.to_builtins(run), "steps": msgspec.to_builtins(lines)}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()
