"""What `jetloop ingest` tells: on the terminal in groups, in build/ingest/<id>.json in full."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from pipelines.ingest_collect import Image, LeftOut
from pipelines.ingest_sources import SourceFile
from serving.contracts.sessions import LABELS, Session
from serving.errors import OperatorError


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the session, and the file it was."""

    image: str  # <session>/<label folder>/<file>
    file: str
    sha256: str
    changed: str = ""  # what was done to it; empty if it is stored byte for byte


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one ingest did."""

    session: str
    about: Session
    path: str
    outcome: Literal["written", "nothing-new", "refused"] = "written"
    images: dict[str, int]  # new ones, per class
    taken: list[Taken]
    left_out: list[LeftOut]


def describe(path: Path, session: Session, images: list[tuple[str, Image]], left_out: list[LeftOut]) -> IngestReport:
    taken = [
        Taken(image=f"{session.id}/{name}", file=image.file.path, sha256=image.sha256, changed=image.changed)
        for name, image in images
    ]
    counts = {label: sum(image.label == label for _, image in images) for label in LABELS}
    ordered = sorted(left_out, key=lambda one: (one.reason, one.file))
    return IngestReport(session=session.id, about=session, path=str(path), images=counts, taken=taken, left_out=ordered)


def save(report: IngestReport, folder: Path) -> None:
    """Writes `<id>.json`, or `<id>.refused.json`, so that a second attempt does not hide what the first one took.

    Raises:
        OperatorError: the disk does not take it.
    """
    outcome = "" if report.outcome == "written" else f".{report.outcome}"
    path = folder / f"{report.session}{outcome}.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
        os.replace(partial, path)
    except OSError as problem:
        raise OperatorError(f"{path} cannot be written: {problem.strerror}") from None


def text(report: IngestReport) -> str:
    """The report for a terminal: every file that was left out, by reason, then what was done to whom, then the sum."""
    lines = []
    groups: dict[str, list[LeftOut]] = defaultdict(list)
    for one in report.left_out:
        groups[one.reason].append(one)
    for reason, members in groups.items():
        lines.append(f"left out, {reason} ({len(members)}):")
        lines += [f"  {one.file}" + (f"  ({one.detail})" if one.detail else "") for one in members]
    changed = [one for one in report.taken if one.changed]
    if changed:
        lines.append(f"converted ({len(changed)}):")
        lines += [f"  {one.file}  ({one.changed})" for one in changed]
    lines.append(_sum(report))
    return "\n".join(lines)


def _sum(report: IngestReport) -> str:
    counts = ", ".join(f"{count} {label}" for label, count in report.images.items())
    left_out = f"{len(report.left_out)} files left out"
    if report.outcome == "written":
        return f"session {report.session}: {counts}; {left_out}; source `{report.about.source}`"
    if report.outcome == "nothing-new":
        return f"nothing new in {report.path}: its images are already ingested; {left_out}"
    return f"nothing written: {counts}; {left_out}"


def progress(files: Iterable[SourceFile]) -> Iterable[SourceFile]:
    """Passes files through and shows on stderr how far it is."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(files, "checking images", console=console, transient=True, disable=not console.is_terminal)
