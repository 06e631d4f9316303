"""Takes out of the store what is archived and old, and remembers its ids, so that it never comes in again."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from serving.errors import OperatorError
from telemetry import archive_source, bulk, rollups, store_events, tables
from telemetry.archive_manifest import Manifest, newest
from telemetry.archive_places import Place
from telemetry.databases import Lock, lock
from telemetry.store import Store

_ROWS = 2000  # of one transaction: collectors wait no longer than that


def retain(store: Store, place: Place, before: datetime.datetime, progress: Callable[[int, int], None]) -> int:
    """Removes from the store the archived events that arrived before a moment.

    The archive's files are looked at first: with one missing or of another size nothing is removed.

    Returns:
        The number of events removed.

    Raises:
        OperatorError: there is no archive of this store there, it is not whole, or one of the two does not work.
    """
    archived = newest(place)
    known = archived.stores.get(archive_source.store_id(store)) if archived is not None else None
    if archived is None or known is None:
        raise OperatorError(f"{place.name} holds nothing of {store.name}; `jetloop archive run` before")
    archive_source.check_is_same(store, known)
    _check_whole(place, archived)
    e = tables.events
    old = (e.c.received_at < before) & (e.c.position <= known.position)
    with store.transaction() as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(e).where(old)).scalar_one()
    done = 0
    progress(done, total)
    while removed := _remove_some(store, old):
        done += removed
        progress(done, total)
    return done


def _check_whole(place: Place, manifest: Manifest) -> None:
    there = {found.path: found.bytes for found in place.list("events/")}
    for file in manifest.files:
        if there.get(file.path) != file.bytes:
            raise OperatorError(
                f"{place.name} is not whole: {file.path} is missing or of another size; nothing was removed. "
                "Put it back from a copy"
            )


def _remove_some(store: Store, old: "sa.ColumnElement[bool]") -> int:
    e = tables.events
    columns = (e.c.position, e.c.id, e.c.site, e.c.robot, e.c.sequence, e.c.release, e.c.captured_at)
    with store.transaction() as connection:
        lock(connection, Lock.WRITING, shared=False)
        rows = connection.execute(sa.select(*columns).where(old).order_by(e.c.received_at).limit(_ROWS)).all()
        if not rows:
            return 0
        bulk.insert(connection, tables.removed, ("id",), [(store_events.packed(row.id),) for row in rows], "")
        _remember_robots(connection, rows)
        rollups.removed(connection, [rollups.Key.of(row.captured_at, row.site, row.robot, row.release) for row in rows])
        connection.execute(sa.delete(e).where(e.c.position.in_([row.position for row in rows])))
    return len(rows)


def _remember_robots(connection: sa.Connection, rows: Sequence[Any]) -> None:
    """The highest sequence and the latest clock of each robot among the removed."""
    highest: dict[tuple[str, str], tuple[int, datetime.datetime]] = {}
    for row in rows:
        sequence, captured_at = highest.get((row.site, row.robot), (row.sequence, row.captured_at))
        highest[row.site, row.robot] = (max(sequence, row.sequence), max(captured_at, row.captured_at))
    larger = "max" if connection.dialect.name == "sqlite" else "greatest"
    names = ("sequence", "captured_at")
    grown = ", ".join(f"{name} = {larger}(removed_robots.{name}, excluded.{name})" for name in names)
    values = [(*key, *highest[key]) for key in sorted(highest)]
    then = f"ON CONFLICT (site, robot) DO UPDATE SET {grown}"
    bulk.insert(connection, tables.removed_robots, ("site", "robot", *names), values, then)
