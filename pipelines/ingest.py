"""`jetloop ingest PATH`: what a person hands in becomes one session in data/sessions, tracked by DVC.

`ingest` is the work, `command` the command line. What is taken and why is in pipelines/ingest_check.py, what is new in
ingest_collect.py, DVC and params.yaml in ingest_track.py, how one set becomes several sessions in ingest_divide.py.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from pipelines.ingest_collect import Image, LeftOut, check, load, named, without_duplicates, without_known
from pipelines.ingest_report import IngestReport, describe, progress, save
from pipelines.ingest_sources import LeaveOut, Source, SourceFile, open_source
from pipelines.sessions import MAX_SESSION_FILE_BYTES, PARTIAL, parse_session, write_session
from serving.contracts.sessions import LABELS, SESSION_FILE, Session
from serving.errors import OperatorError, RejectedError
from serving.settings import convert

REPORTS = Path("build/ingest")


class RefusedError(RejectedError):
    """Nothing was written; `report` names every file that was left out."""

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report


def ingest(
    path: Path,
    into: Path,
    *,
    part: tuple[int, int] | None = None,
    resize: bool = False,
    reports: Path = REPORTS,
    **about: Any,
) -> IngestReport:
    """Adds what is at `path` to the sessions in `into`, as one new session zip.

    Handing in the same images again adds nothing. A crash at any moment leaves either no session or a whole one.

    Args:
        path: a session zip, a notebook's dataset.zip, or a folder, with blocked/ and free/ somewhere inside.
        into: the folder of session zips; made where it is missing.
        part: (number, of how many): take only this part of the images, as pipelines/ingest_divide.py divides them, as a
            session named `<id>-<number>`. Files that cannot be taken belong to the first part.
        resize: bring images of another size to 224x224 instead of leaving them out.
        reports: folder for `<id>.json`, what was taken and what was left out and why.
        about: fields of session.json (id, source, robot, place, ...) that overrule what the zip itself says.

    Raises:
        RefusedError: a class would be empty, so nothing was written.
        RejectedError: `path` cannot be read as a zip, its session.json is wrong, or a session in `into` is broken.
        OperatorError: there is nothing at `path`, the id is taken, or the disk does not take the session.
    """
    with contextlib.closing(open_source(path)) as source, _alone(into):
        session = _about(source, path, about, part)
        handed_in = source.files if part is None else _of_part(source, path, part, resize)
        checked = check(source, progress(handed_in), resize)
        distinct = without_duplicates(checked.images)
        new = without_known(distinct.images, into)
        images = named(new.images)
        report = describe(path, session, images, checked.left_out + distinct.left_out + new.left_out)
        if not images and new.left_out:
            report = msgspec.structs.replace(report, outcome="nothing-new")
        else:
            _refuse_empty_class(report, new.left_out, reports)
            destination = into / f"{session.id}.zip"
            if destination.exists():
                raise OperatorError(f"{destination} exists and holds other images; choose another name with --id")
            write_session(destination, session, _bytes(source, images, resize))
        save(report, reports)
        return report


@contextlib.contextmanager
def _alone(into: Path) -> Iterator[None]:
    """One ingest at a time; clears away what one that was killed has left."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(into, os.O_RDONLY)
    except OSError as problem:
        raise OperatorError(f"{into} cannot be written: {problem.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with this process, however it ends
        for leftover in into.glob(f".*{PARTIAL}"):
            leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def _of_part(source: Source, path: Path, part: tuple[int, int], resize: bool) -> list[SourceFile]:
    from pipelines.ingest_divide import divide

    number, parts = part
    files = divide(path, (1 / parts,) * parts, resize=resize)[number - 1]
    return [file for file in source.files if file.path in files]


def _about(source: Source, path: Path, about: dict[str, Any], part: tuple[int, int] | None) -> Session:
    """session.json of the new session: what the person says, else what the zip says, else what its name says."""
    given: dict[str, Any] = {key: value for key, value in about.items() if value is not None}
    file = next((file for file in source.files if file.path == SESSION_FILE and not file.problem), None)
    said: dict[str, Any] = {}
    if file:
        try:
            text = source.read(file)
        except LeaveOut as why:
            raise RejectedError(f"{path}: {SESSION_FILE} cannot be read: {why.reason} {why.detail}") from None
        said = msgspec.to_builtins(parse_session(text[:MAX_SESSION_FILE_BYTES], f"{path}: {SESSION_FILE}"))
    name = path.resolve().name
    own = re.sub(r"[^A-Za-z0-9_.-]+", "-", name.removesuffix(".zip")).strip("-._")[:90] or "session"
    both = {"id": own, **said, **given}
    both.setdefault("source", both["id"])  # nobody said whose images they are: a source of their own
    if part:
        both["id"] = f"{both['id']}-{part[0]}"
    return convert(both, Session, f"session of {path}", OperatorError)


def _refuse_empty_class(report: IngestReport, known: list[LeftOut], reports: Path) -> None:
    empty = [label for label in LABELS if not report.images[label]]
    if not empty:
        return
    report = msgspec.structs.replace(report, outcome="refused")
    save(report, reports)
    why = f"{len(report.left_out)} files left out" if report.left_out else "no file was found"
    hint = f", {len(known)} of them already ingested" if known else ""
    folders = " and ".join(f"{label}/" for label in LABELS)
    raise RefusedError(
        f"{report.path}: no usable image of {' or '.join(empty)} ({why}{hint}); nothing was written. "
        f"Hand in a zip or folder with 224x224 RGB JPEG images in {folders}",
        report,
    )


def _bytes(source: Source, images: list[tuple[str, Image]], resize: bool) -> Iterator[tuple[str, bytes]]:
    for name, image in images:
        try:
            data = load(source, image, resize).data
        except LeaveOut:
            data = b""
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise OperatorError(f"{image.file.path} changed while it was read; try again when it is at rest")
        yield name, data


def _part(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})", value)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"`{value}` is not N/M, such as 1/2 and 2/2")
    return int(found[1]), int(found[2])


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--id", "session_id", help="Name of the session.  [default: from session.json, or the name of PATH]")
@click.option("--source", help="Whose images these are: a person, a house.  [default: the session's id]")
@click.option("--robot", help="Which robot took them.")
@click.option("--place", help="Where.")
@click.option("--camera", help="With which camera.")
@click.option("--captured-at", help="When, such as 2026-05-08T11:00:00Z.")
@click.option("--safety-distance-cm", type=float, help="Nearer than this counted as blocked.")
@click.option("--licence", help="What the images may be used for.")
@click.option("--resize", is_flag=True, help="Bring images of another size to 224x224 instead of leaving them out.")
@click.option("--part", callback=_part, help="N/M: only part N of M, as session <id>-N.", metavar="N/M")
@click.option("--no-track", is_flag=True, help="Only write the session; leave DVC and params.yaml alone.")
def command(
    paths: tuple[Path, ...],
    session_id: str | None,
    resize: bool,
    part: tuple[int, int] | None,
    no_track: bool,
    **about: Any,
) -> None:
    """Add each PATH to the data as a new session.

    PATH is a session zip, a notebook's dataset.zip, or a folder: images in blocked/ and free/, somewhere inside, in
    any letter case. Taken are 224x224 RGB JPEG files as they are; PNG, BMP and WebP become JPEG. Every file that is
    left out is named with the reason, here and in build/ingest/<id>.json. If a class would be empty, nothing is added.

    Writes data/sessions/<id>.zip, runs `dvc add data/sessions`, points data.sessions in params.yaml away from the
    sample, and prints the git commands that are left to you. Handing in the same images twice adds nothing.

    One large set may come in as several sessions (--part 1/2, then --part 2/2): near-duplicates stay together, and each
    part has both classes.

    \b
    Example:
      jetloop ingest dataset.zip --id kitchen-may --source anna --place kitchen --safety-distance-cm 20
      dvc repro
    """
    from pipelines import ingest_report, ingest_track

    if session_id and len(paths) > 1:
        raise click.UsageError("--id names one session; hand in one PATH with it")
    into = ingest_track.target()
    if not no_track:
        ingest_track.refuse_unfetched(into)
    sessions = []
    try:
        for path in paths:
            report = ingest(path, into, resize=resize, part=part, id=session_id, **about)
            click.echo(ingest_report.text(report))
            sessions.append(report.session)
    except RefusedError as refused:
        click.echo(ingest_report.text(refused.report))
        raise
    finally:
        # Also where nothing is new, since a killed ingest may have come this far, and for those before a refused one.
        if sessions and not no_track:
            click.echo(ingest_track.next_steps(ingest_track.track(into), ", ".join(sessions)))
