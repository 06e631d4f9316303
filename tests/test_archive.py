"""Events in the archive: written, asked, put together, taken out of the store; in a folder and on a real S3."""

import csv
import datetime
import io
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from serving.contracts.events import Event
from serving.errors import OperatorError, RejectedError
from telemetry import archive_files, archive_manifest
from telemetry.archive import group
from telemetry.archive_manifest import File, newest, sweep
from telemetry.archive_places import Place, place_of
from telemetry.archive_query import query
from telemetry.archive_retain import retain
from telemetry.archive_run import compact, run, small
from telemetry.store import Batch, Gap, Store
from tests.servers.postgres import postgres  # noqa: F401
from tests.servers.s3 import s3  # noqa: F401
from tests.test_telemetry_samples import event, later
from tests.test_telemetry_store import store, url  # noqa: F401

DAY = datetime.datetime(2026, 3, 23, 10, tzinfo=datetime.UTC)
_prefixes = itertools.count()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An archive that is not there yet."""
    if request.param == "folder":
        return place_of(str(tmp_path / "archive"))
    server = request.getfixturevalue("s3")
    return place_of(f"s3://{server.bucket}/archive-{next(_prefixes)}", server.endpoint)


def quiet(_done: int, _total: int) -> None:
    pass


def made(count: int, first: int = 1, **changes: Any) -> list[Event]:
    """Events of two robots at two sites on two days."""
    return [
        event(
            n,
            robot=f"r{n % 2}",
            site=f"site-{n % 2}",
            time=DAY + datetime.timedelta(days=n // 2 % 2, minutes=n),
            **changes,
        )
        for n in range(first, first + count)
    ]


def rows(place: Place, sql: str = "select * from events order by id") -> list[dict[str, Any]]:
    return list(query(place, sql)[1])


def test_an_event_comes_back_as_it_was(store: Store, place: Place) -> None:
    """Every field, to the microsecond, in the partition of its own day and site."""
    late = event(2, time=DAY.replace(year=2025, microsecond=123456), site="old", sentat=None, data={"ü": [1, None]})
    store.add(Batch(events=[*made(10), late]))
    assert run(store, place, 1000, quiet).rows == 11
    there = rows(place)
    assert len(there) == 11
    for row in there:
        one = store.event(row["id"])
        same = (
            "site",
            "robot",
            "session",
            "type",
            "sequence",
            "release",
            "engine",
            "captured_at",
            "sent_at",
            "received_at",
        )
        assert {name: row[name] for name in same} == {name: one[name] for name in same}
        assert row["date"] == one["captured_at"].date()
    (old,) = rows(place, "select date, site, data->>'$.ü[0]' as first, sent_at from events where site = 'old'")
    assert (old["date"], old["first"], old["sent_at"]) == (datetime.date(2025, 3, 23), "1", None)
    paths = {Path(file.path).parent.as_posix() for file in newest(place).files}
    assert "events/date=2025-03-23/site=old" in paths


def test_only_what_is_new_is_archived(store: Store, place: Place) -> None:
    """Each run adds what came since, in commits of bounded size; a run with nothing new writes nothing."""
    store.add(Batch(events=made(25)))
    assert run(store, place, 10, quiet).rows == 25
    assert newest(place).number == 3
    store.add(Batch(events=made(30)))  # 30 new ids
    assert run(store, place, 1000, quiet).rows == 30
    assert run(store, place, 1000, quiet) == type(run(store, place, 1000, quiet))()
    assert newest(place).number == 4
    (row,) = rows(place, "select count(*) as n, count(distinct id) as ids from events")
    assert (row["n"], row["ids"]) == (55, 55)


def test_small_files_become_large_ones(store: Store, place: Place) -> None:
    """The same events in fewer files; who reads by the older manifest still can; the files go a day later."""
    for batch in range(5):
        store.add(Batch(events=made(8, 1 + 8 * batch)))
        run(store, place, 1000, quiet)
    before, there = newest(place), rows(place)
    assert len(before.files) == 20
    done = compact(place, 10_000_000, quiet)
    after = newest(place)
    assert (done.replaced, done.files, len(after.files)) == (20, 4, 4)
    assert rows(place) == there
    assert archive_files.read(place, before.files).count_rows() == 40
    assert sweep(place) == 0
    assert compact(place, 10_000_000, quiet).files == 0
    assert newest(place) == after


def test_what_no_manifest_names_is_swept_in_time(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a killed archiver, and replaced ones, are not read, and go when nobody can need them any more."""
    for batch in range(2):
        store.add(Batch(events=made(8, 1 + 8 * batch)))
        run(store, place, 1000, quiet)
    orphan = next(archive_files.partitions(pa.concat_tables([_some_table(store)])))
    archive_files.write(place, *orphan)
    compact(place, 10_000_000, quiet)
    live = {file.path for file in newest(place).files}
    assert len(place.list("events/")) == len(live) + 8 + 1
    assert sweep(place) == 0
    monkeypatch.setattr(archive_manifest, "ORPHANS_KEPT", datetime.timedelta(seconds=-1))
    assert sweep(place) == 9
    assert {found.path for found in place.list("events/")} == live
    assert len(rows(place)) == 16


def _some_table(store: Store) -> pa.Table:
    from telemetry.archive_source import batches

    return next(batches(store, 0, 3, 3)).table


def test_files_are_chosen_by_day_and_site() -> None:
    """Never across days or sites, never over the target, never one alone."""
    files = [
        File(path=f"{date}{site}{size}", date=date, site=site, rows=1, bytes=size, schema=1)
        for date, site, size in [
            *(("d1", "a", 5), ("d1", "a", 6), ("d1", "a", 90), ("d1", "a", 100), ("d1", "b", 5), ("d2", "a", 5)),
            *(("d2", "a", 60), ("d2", "a", 60), ("d2", "a", 200)),
        ]
    ]
    assert [[file.bytes for file in group] for group in small(files, 100)] == [[5, 6], [5, 60]]


def test_a_new_column_keeps_old_files_readable(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file carries its version; a column that it lacks reads as null."""
    store.add(Batch(events=made(2)))
    run(store, place, 1000, quiet)
    (file, *_) = newest(place).files
    described = pq.read_schema(io.BytesIO(place.read(file.path)))
    assert described.metadata[b"jetloop.schema"] == b"1"
    assert described.names == archive_files.COLUMNS.names
    wider = archive_files.COLUMNS.append(pa.field("fleet", pa.string()))
    monkeypatch.setattr(archive_files, "COLUMNS", wider)
    assert rows(place, "select fleet, count(*) as n from events group by fleet") == [{"fleet": None, "n": 2}]


def test_a_query_reads_and_nothing_else(store: Store, place: Place, tmp_path: Path) -> None:
    """No file, no network, no extension, whatever the query says; a wrong one is refused in one line."""
    store.add(Batch(events=made(2)))
    run(store, place, 1000, quiet)
    for bad in (
        f"copy events to '{tmp_path / 'out.csv'}'",
        "select * from read_csv('/etc/passwd')",
        "install httpfs",
        "set enable_external_access = true",
        "selekt",
        "select nothing from events",
    ):
        with pytest.raises(RejectedError) as found:
            list(query(place, bad)[1])
        assert "\n" not in str(found.value)
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(OperatorError, match="there is no archive"):
        query(place_of(str(tmp_path / "none")), "select 1")


def test_the_store_keeps_what_is_not_archived_or_not_old(store: Store, place: Place) -> None:
    """Only archived and old events go; their rollups stay; what comes a second time is known."""
    old, young, late = made(6), made(6, 7), made(6, 13)
    store.add(Batch(events=old), DAY)
    store.add(Batch(events=young), later(0))
    with pytest.raises(OperatorError, match="holds nothing of"):
        retain(store, place, later(-60), quiet)
    run(store, place, 1000, quiet)
    store.add(Batch(events=late), DAY)  # as old, and not archived
    before = store.rollups(DAY.replace(year=2000))
    assert retain(store, place, later(-60), quiet) == 6
    assert {row["id"] for row in store.recent()} == {one.id for one in (*young, *late)}
    assert store.add(Batch(events=[*old, *young])).stored == 0
    kept = store.rollups(DAY.replace(year=2000))
    assert [{**row, "removed": 0} for row in kept] == before
    store.rebuild_rollups()
    assert store.rollups(DAY.replace(year=2000)) == kept
    assert run(store, place, 1000, quiet).rows == 6
    (row,) = rows(place, "select count(*) as n, count(distinct id) as ids from events")
    assert (row["n"], row["ids"]) == (18, 18)


def test_what_was_removed_is_no_gap(store: Store, place: Place) -> None:
    """The store says nothing of numbers that it had once, and still tells those that never came."""
    store.add(Batch(events=[event(n) for n in range(1, 9)]), DAY)
    store.add(Batch(events=[event(n) for n in (9, 10, 13)]))
    run(store, place, 1000, quiet)
    retain(store, place, later(-60), quiet)
    store.add(Batch(events=[event(5)]))  # another id: a robot that lost its numbers
    assert store.gaps() == store.gaps(from_first=True) == [Gap("lab", "jetbot-1", 11, 12)]


def test_nothing_is_removed_when_the_archive_is_not_whole(store: Store, place: Place) -> None:
    """A file that somebody deleted is noticed before the store forgets its events."""
    store.add(Batch(events=made(4)), DAY)
    run(store, place, 1000, quiet)
    place.delete([newest(place).files[0].path])
    with pytest.raises(OperatorError, match="is not whole"):
        retain(store, place, later(0), quiet)
    with pytest.raises(OperatorError, match="cannot be read"):
        rows(place)
    assert store.count() == 4


def test_a_store_put_back_from_a_copy_is_noticed(store: Store, place: Place) -> None:
    """Its positions would be given a second time, and new events be taken for archived ones."""
    import sqlalchemy as sa

    store.add(Batch(events=made(4)))
    run(store, place, 1000, quiet)
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE events SET id = '0' || substr(id, 2, 34) || '_' WHERE position = 4"))
    for command in (lambda: run(store, place, 1000, quiet), lambda: retain(store, place, later(0), quiet)):
        with pytest.raises(OperatorError, match="put back from a copy"):
            command()


def test_the_commands(store: Store, url: str, place: Place, s3: Any) -> None:
    """What the documentation shows, as a person types it."""
    store.add(Batch(events=made(6, data={"p_blocked": 0.5})), DAY)
    there = ["--endpoint-url", s3.endpoint]

    def call(*words: str) -> str:
        done = CliRunner().invoke(group, [*words, *there], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "nothing is archived" in call("status", "--from", place.name)
    assert "6 events archived in 4 files" in call("run", "--store", url, "--to", place.name)
    assert "6 events, 4 files" in call("status", "--from", place.name)
    sql = "select robot, count(*) as n, sum((data->>'$.p_blocked')::double) as p from events group by 1 order by 1"
    shown = call("query", sql, "--from", place.name, "--format", "csv")
    assert list(csv.reader(io.StringIO(shown))) == [["robot", "n", "p"], ["r0", "3", "1.5"], ["r1", "3", "1.5"]]
    assert '{"robot": "r0", "n": 3, "p": 1.5}' in call("query", sql, "--from", place.name, "--format", "json")
    assert "r1" in call("query", sql, "--from", place.name)
    assert "0 files became 0" in call("compact", "--to", place.name)
    removed = call("retain", "--days", "1", "--store", url, "--to", place.name)
    assert "6 events removed" in removed
