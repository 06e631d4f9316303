"""What belongs to an archive: numbered manifests, of which the newest is the truth. docs/adr/0007-archive-manifests.md

    manifests/0000000042.json                            one a commit, never changed
    events/date=2026-11-23/site=lab/<uuid>.parquet       belongs to the archive once a manifest names it

A manifest names all files, and for each store how far it is archived. The next number can be created once: of two
archivers one gets it, and the other looks again at what is there. So files and progress change together.
"""

import datetime
import uuid
from collections.abc import Callable, Sequence

import msgspec

from serving.contracts.events import utc_now
from serving.errors import OperatorError
from telemetry.archive_places import Place, age

FORMAT = 1  # of the manifest
ORPHANS_KEPT = datetime.timedelta(hours=24)  # a file without a manifest may belong to a commit that is on its way,
COMMIT_WITHIN = datetime.timedelta(hours=6)  # which must come within this time
_KEPT = 100  # manifests, though they are older than ORPHANS_KEPT
_FOLDER, EVENTS = "manifests/", "events/"


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet file of one day at one site."""

    path: str
    date: str  # of captured_at, in UTC
    site: str
    rows: int
    bytes: int
    schema: int  # archive_files.SCHEMA when it was written


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """How far a store is archived: its events up to `position`, of which the last is `event`."""

    position: int
    event: str


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A file that others replaced; whoever reads by an older manifest may still need it."""

    path: str
    at: datetime.datetime


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int = FORMAT
    number: int = 0
    commit: str = ""  # to know one's own again, after an answer that got lost
    at: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    stores: dict[str, Archived] = {}  # by the store's id
    files: list[File] = []
    dropped: list[Dropped] = []

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def replaced(self, old: Sequence[File], new: Sequence[File]) -> "Manifest | None":
        """The manifest with `new` files in the place of `old` ones; None when one of those is not in it any more."""
        here, gone = {file.path for file in self.files}, {file.path for file in old}
        if not gone <= here:
            return None
        files = [file for file in self.files if file.path not in gone] + list(new)
        dropped = [*self.dropped, *(Dropped(path=path, at=utc_now()) for path in sorted(gone))]
        return msgspec.structs.replace(self, files=files, dropped=dropped)


class _Format(msgspec.Struct):
    format: int


def newest(place: Place) -> Manifest | None:
    """The newest manifest; None where there is no archive yet.

    Raises:
        OperatorError: the place does not answer, or holds what this jetloop does not understand.
    """
    numbers = _numbers(place)
    while numbers:
        number = max(numbers)
        data = place.read(_path(number))
        if data is not None:
            return _decode(place, number, data)
        numbers.remove(number)
    return None


def commit(
    place: Place, base: Manifest | None, change: Callable[[Manifest], Manifest | None], begun_at: datetime.datetime
) -> Manifest | None:
    """Makes a change to the archive visible, whole, once.

    Args:
        base: the newest manifest that is known.
        change: from the newest manifest to what shall come after it, or None when that is no longer wanted. It is
            called again when somebody else committed meanwhile.
        begun_at: when the first of the new files was written.

    Returns:
        The new manifest; None when `change` did not want it any more.

    Raises:
        OperatorError: the place does not work, or the change took longer than its files are kept.
    """
    own = str(uuid.uuid4())
    while True:
        wanted = change(base or Manifest())
        if wanted is None:
            return None
        if utc_now() - begun_at > COMMIT_WITHIN:
            raise OperatorError(f"a commit to {place.name} took over {COMMIT_WITHIN}; run it again with fewer rows")
        number = base.number + 1 if base else 1
        long_ago = utc_now() - 2 * ORPHANS_KEPT
        dropped = [one for one in wanted.dropped if one.at > long_ago]
        made = msgspec.structs.replace(wanted, number=number, commit=own, at=utc_now(), dropped=dropped)
        if _create(place, made):
            return made
        base = newest(place)


def sweep(place: Place) -> int:
    """Deletes what no manifest names, a day after it was written or dropped, and manifests of long ago.

    Returns:
        The number of files deleted.
    """
    found = place.list(EVENTS)  # before the manifest: what is committed after this look is younger than a day
    current = newest(place)
    if current is None:
        return 0
    kept = {file.path for file in current.files}
    kept |= {one.path for one in current.dropped if utc_now() - one.at < ORPHANS_KEPT}
    doomed = [one.path for one in found if one.path not in kept and age(one) > ORPHANS_KEPT]
    for one in place.list(_FOLDER):
        number = _number(one.path)
        old = number is None or number <= current.number - _KEPT
        if old and age(one) > ORPHANS_KEPT:
            doomed.append(one.path)
    place.delete(doomed)
    return len(doomed)


def check_names(place: Place, current: Manifest) -> None:
    """Refuses an S3 that gives out a name twice: there, two archivers would overwrite each other.

    Raises:
        OperatorError: it does.
    """
    data = place.read(_path(current.number))
    if data is not None and place.create(_path(current.number), data):
        raise OperatorError(f"{place.name} ignores If-None-Match, which the archive needs; use another S3 server")


def _create(place: Place, manifest: Manifest) -> bool:
    """Whether the manifest is there, however the attempts to bring it there went."""
    path = _path(manifest.number)
    try:
        if place.create(path, msgspec.json.encode(manifest)):
            return True
    except OperatorError:
        if not _is_own(place, manifest):
            raise
        return True
    return _is_own(place, manifest)


def _is_own(place: Place, manifest: Manifest) -> bool:
    there = place.read(_path(manifest.number))
    return there is not None and _decode(place, manifest.number, there).commit == manifest.commit


def _numbers(place: Place) -> set[int]:
    return {number for one in place.list(_FOLDER) if (number := _number(one.path)) is not None}


def _number(path: str) -> int | None:
    name = path.removeprefix(_FOLDER).removesuffix(".json")
    return int(name) if name.isdecimal() and path.endswith(".json") else None


def _path(number: int) -> str:
    return f"{_FOLDER}{number:010d}.json"


def _decode(place: Place, number: int, data: bytes) -> Manifest:
    try:
        known = msgspec.json.decode(data, type=_Format).format
        if known > FORMAT:
            raise OperatorError(f"{place.name} has manifests of format {known}: use the jetloop that wrote it")
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as problem:
        raise OperatorError(f"{place.name}: {_path(number)} is damaged ({problem}); put it back from a copy") from None
