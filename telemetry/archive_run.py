"""From the store into the archive, each event once; and small files of the archive into larger ones."""

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec
import pyarrow as pa

from serving.contracts.events import utc_now
from telemetry import archive_files, archive_source
from telemetry.archive_manifest import File, Manifest, check_names, commit, newest
from telemetry.archive_places import Place
from telemetry.store_reading import StoreReader

log = logging.getLogger("jetloop.archive")

ROWS_OF_A_COMMIT = 250_000  # so many events are in memory at once, about 1 kB each
TARGET_BYTES = 64_000_000  # of a compacted file
_FILES_OF_A_COMMIT = 200  # that a compaction replaces at once

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Done:
    """What a command did to the archive."""

    rows: int = 0
    files: int = 0
    replaced: int = 0

    def __add__(self, other: "Done") -> "Done":
        return Done(self.rows + other.rows, self.files + other.files, self.replaced + other.replaced)


def run(store: StoreReader, place: Place, rows_of_a_commit: int, progress: Progress) -> Done:
    """Archives everything that the store has now and the archive has not.

    Killed at any moment, it goes on where the last manifest is. Beside another archiver of the same store the work
    of one of the two is thrown away.

    Raises:
        OperatorError: store or place do not work, or the store is not the one that was archived.
    """
    current = newest(place)
    if current is not None:
        check_names(place, current)
    identity, up_to = archive_source.store_id(store), archive_source.settled(store)
    total = archive_source.waiting(store, _position(current, identity), up_to)
    done = Done()
    progress(0, total)
    while True:
        current = newest(place)
        if current is not None and identity in current.stores:
            archive_source.check_is_same(store, current.stores[identity])
        if _position(current, identity) >= up_to:
            return done
        step = _commit_next(store, place, current, identity, up_to, rows_of_a_commit)
        if step is None:
            log.info("another archiver of this store was faster; looking at what it left")
            continue
        if not step.rows:
            return done
        done += step
        progress(done.rows, total)
        log.info("archived %d of %d events", done.rows, total)


def compact(place: Place, target_bytes: int, progress: Progress) -> Done:
    """Writes small files of the same day and site into larger ones, up to `target_bytes`, sorted anew.

    Raises:
        OperatorError: the place does not work.
    """
    current = newest(place)
    if current is None:
        return Done()
    check_names(place, current)
    groups = small(current.files, target_bytes)
    done, total = Done(), sum(map(len, groups))
    progress(0, total)
    while groups:
        now: list[list[File]] = []
        count = 0
        while groups and (not now or count + len(groups[0]) <= _FILES_OF_A_COMMIT):
            count += len(groups[0])
            now.append(groups.pop(0))
        done += _commit_compacted(place, current, now)
        progress(total - sum(map(len, groups)), total)
        log.info("compacted %d of %d files", total - sum(map(len, groups)), total)
    return done


def small(files: Sequence[File], target_bytes: int) -> list[list[File]]:
    """Which files to put together: two or more of a day and site, together not over the target. Pure."""
    groups: list[list[File]] = []
    ordered = sorted((file for file in files if file.bytes < target_bytes), key=lambda f: (f.date, f.site, f.bytes))
    for _, same in groupby(ordered, key=lambda file: (file.date, file.site)):
        group: list[File] = []
        for file in same:
            if group and sum(one.bytes for one in group) + file.bytes > target_bytes:
                groups.append(group)
                group = []
            group.append(file)
        groups.append(group)
    return [group for group in groups if len(group) > 1]


def _position(manifest: Manifest | None, identity: str) -> int:
    known = manifest.stores.get(identity) if manifest is not None else None
    return known.position if known is not None else 0


def _commit_next(
    store: StoreReader, place: Place, base: Manifest | None, identity: str, up_to: int, rows: int
) -> Done | None:
    """Archives the next events of the store; None when another archiver did so meanwhile."""
    before = _position(base, identity)
    read = list(archive_source.batches(store, before, up_to, rows))
    if not read:
        return Done()
    begun_at, archived = utc_now(), read[-1].archived
    events = pa.concat_tables([one.table for one in read])
    del read
    files = [archive_files.write(place, *partition) for partition in archive_files.partitions(events)]

    def change(current: Manifest) -> Manifest | None:
        if _position(current, identity) != before:
            return None
        stores = {**current.stores, identity: archived}
        return msgspec.structs.replace(current, stores=stores, files=[*current.files, *files])

    return _committed(place, base, change, files, begun_at, 0)


def _commit_compacted(place: Place, base: Manifest, groups: Sequence[Sequence[File]]) -> Done:
    begun_at = utc_now()
    old = [file for group in groups for file in group]
    files = [_written_together(place, group) for group in groups]
    done = _committed(place, base, lambda current: current.replaced(old, files), files, begun_at, len(old))
    if done is None:
        log.info("another compaction was faster with these %d files", len(old))
    return done or Done()


def _committed(
    place: Place,
    base: Manifest | None,
    change: Callable[[Manifest], Manifest | None],
    files: Sequence[File],
    begun_at: datetime.datetime,
    replaced: int,
) -> Done | None:
    if commit(place, base, change, begun_at) is None:
        place.delete([file.path for file in files])
        return None
    return Done(sum(file.rows for file in files), len(files), replaced)


def _written_together(place: Place, group: Sequence[File]) -> File:
    """One file with the rows of several, which stay until the manifest forgets them."""
    events = archive_files.read(place, group).to_table(columns=archive_files.COLUMNS.names)
    if events.num_rows != sum(file.rows for file in group):
        raise RuntimeError(f"{events.num_rows} rows read from files of {sum(file.rows for file in group)}")
    events = events.sort_by([("robot", "ascending"), ("sequence", "ascending")])
    return archive_files.write(place, group[0].date, group[0].site, events)
