"""From an event back to what made it: robot, engine, release, version, run, commit, data. Pure: no I/O here."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from serving.contracts.releases import Passport
from serving.errors import RejectedError
from telemetry.releases import Release


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that led to an event, as far as the passport of the engine tells."""

    event: str  # id
    type: str
    captured_at: datetime.datetime
    site: str
    robot: str
    session: str
    sequence: int
    passport: Passport
    engine_path: str  # in the repository, as it lies there
    releases: list[str]  # what became of the release, such as "champion 3 released 2026-11-23T12:00:00Z"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the answer."""

    what: str
    value: str
    note: str = ""
    get: str = ""  # the command or address that gets it back


def trace(event: Mapping[str, Any], releases: Sequence[Release]) -> Origin:
    """Follows an event to its engine's passport.

    Args:
        event: a row of the store.
        releases: what the release service tells.

    Raises:
        RejectedError: the robot had no model then, or no known release has that engine.
    """
    release_id, engine = event["release"], event["engine"]
    if not engine:
        raise RejectedError(f"event {event['id']} has no engine: {event['robot']} ran no model when it happened")
    same = [release for release in releases if release.release_id == release_id]
    if not same:
        raise RejectedError(
            f"the release service knows no release `{release_id}`, which the event names; is it the service that "
            f"{event['robot']} pulls from?"
        )
    passports = [passport for release in same for passport in release.passports.values()]
    passport = next((one for one in passports if one.engine.sha256 == engine), None)
    if passport is None:
        known = ", ".join(sorted({one.engine.sha256[:12] for one in passports})) or "none"
        raise RejectedError(
            f"{event['robot']} ran engine {engine[:12]} as release `{release_id}`, but the engines of that release "
            f"are {known}: the engine did not come from this service"
        )
    folder, _, name = passport.engine.path.rpartition("/")
    return Origin(
        event=event["id"],
        **{name: event[name] for name in ("type", "captured_at", "site", "robot", "session", "sequence")},
        passport=passport,
        engine_path=f"targets/{folder}/{passport.engine.sha256}.{name}",  # TUF's consistent snapshots
        releases=[_decision(release) for release in same],
    )


def steps(origin: Origin, releases_url: str = "", mlflow_url: str = "") -> Iterator[Step]:
    """The way back, one line each, with what gets each thing.

    Args:
        origin: what `trace` found.
        releases_url: address of the release service.
        mlflow_url: address of MLflow; `<mlflow>` stands for it where it is not known.
    """
    passport, lineage = origin.passport, origin.passport.lineage
    mlflow = mlflow_url.rstrip("/") if mlflow_url.startswith("http") else "<mlflow>"
    service = releases_url.rstrip("/") or "<releases>"
    yield Step(
        what="event",
        value=origin.event,
        note=f"{origin.type}, {origin.captured_at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC",
        get=f"jetloop trace {origin.event} --json",
    )
    yield Step(
        what="robot", value=f"{origin.site}/{origin.robot}", note=f"session {origin.session}, event {origin.sequence}"
    )
    yield Step(
        what="engine",
        value=passport.engine.sha256,
        note=f"{passport.target}, built {passport.built_at} on {passport.measured.machine}",
        get=f"curl -fO {service}/{quote(origin.engine_path)}",
    )
    yield Step(what="release", value=passport.release_id, note="; ".join(origin.releases))
    yield Step(
        what="version",
        value=f"{lineage.model_name} {lineage.model_version}",
        note=f"approved by {passport.approver} at {passport.approved_at}",
        get=f"{mlflow}/#/models/{quote(lineage.model_name)}/versions/{quote(lineage.model_version)}",
    )
    yield Step(what="run", value=lineage.run_id, get=f"{mlflow}/#/runs/{quote(lineage.run_id)}")
    yield Step(
        what="model",
        value=lineage.onnx_sha256,
        note="model.onnx, of which the engine was made",
        get=f"mlflow artifacts download --run-id {lineage.run_id} --artifact-path export/model.onnx --dst-path .",
    )
    yield Step(
        what="commit",
        value=lineage.git_commit,
        note="trained with changes that were not committed: this commit alone does not give the model"
        if lineage.git_dirty
        else "",
        get=f"git checkout {lineage.git_commit}",
    )
    for path, digest in sorted(lineage.data.items()):
        copy = f"{path.strip('/').replace('/', '-')}-{digest[:8]}"
        yield Step(
            what="data",
            value=digest,
            note=path,
            get=f"dvc get . {path} --rev {lineage.git_commit} -o {copy}",
        )


def _decision(release: Release) -> str:
    sequence = "" if release.sequence is None else f" {release.sequence}"
    return f"{release.channel}{sequence} {release.status} {release.issued_at}" + (", now running" * release.current)
