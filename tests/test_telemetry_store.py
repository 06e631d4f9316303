"""The event store, on SQLite and on PostgreSQL."""

import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.contracts.events import Event
from serving.errors import OperatorError, RejectedError
from telemetry import tables
from telemetry.messages import Forgotten
from telemetry.robots import after_event, after_state
from telemetry.store import MAX_REJECTED, Added, Batch, Gap, Rejected, Store, open_reader, open_store
from tests.servers.postgres import postgres  # noqa: F401
from tests.test_telemetry_samples import event, later, state


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'events.db'}"
    return str(request.getfixturevalue("postgres").database())


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def _sqlite(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'events.db'}")


def _empty(store: Store) -> None:
    with store._engine.begin() as connection:
        for table in (tables.events, tables.robots, tables.rollups):
            connection.execute(sa.delete(table))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6))
def test_each_event_is_stored_once(store: Store, batches: list[list[int]]) -> None:
    """In whatever order and however often events come, each id is stored exactly once and every copy is counted."""
    _empty(store)
    known = [event(sequence=number + 1) for number in range(10)]
    stored = duplicates = 0
    for batch in batches:
        added = store.add(Batch(events=[known[number] for number in batch]))
        stored, duplicates = stored + added.stored, duplicates + added.duplicates
    sent = [number for batch in batches for number in batch]
    assert stored == store.count() == len(set(sent))
    assert duplicates == len(sent) - len(set(sent))
    assert {row["id"] for row in store.recent()} == {known[number].id for number in sent}


def test_an_event_comes_back_as_it_was(store: Store) -> None:
    """Nothing of an event is lost in the tables, and its times keep their moment whatever offset they came with."""
    east = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    sent = event(
        7, time=datetime.datetime(2026, 11, 23, 17, 30, 0, 123456, east), data={"a": [1, {"b": None}], "ü": "ß"}
    )
    assert store.add(Batch(events=[sent])) == Added(stored=1, duplicates=0)
    row = store.event(sent.id)
    same = ("id", "site", "robot", "session", "type", "sequence", "release", "engine", "data")
    assert {name: row[name] for name in same} == {name: getattr(sent, name) for name in same}
    assert row["captured_at"] == sent.time
    assert row["captured_at"].utcoffset() == datetime.timedelta(0)
    assert row["sent_at"] == sent.sentat


def test_a_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    """When one event of a batch cannot be stored, none of it is."""
    bad = event(2**70)
    with pytest.raises((RejectedError, OperatorError)):
        store.add(Batch(events=[event(1), bad]))
    assert store.count() == 0


def test_an_event_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    """A unique beginning is enough; an ambiguous or unknown one is refused with what to do."""
    one = event(id="01a2084a-ff8d-7000-9f40-0751f70252db")
    two = event(id="01a2084a-ff8d-7000-9f40-0751f70252dc")
    store.add(Batch(events=[one, two]))
    assert store.event(one.id.upper())["id"] == one.id
    with pytest.raises(RejectedError, match="more than one event"):
        store.event("01a2084a-ff8d")
    with pytest.raises(RejectedError, match="no event `ffff`"):
        store.event("ffff")
    for useless in ("", "%", "01a", "'; drop table events"):
        with pytest.raises(RejectedError, match="is not an event's id"):
            store.event(useless)


def test_gaps_name_the_missing_sequences(store: Store) -> None:
    """What never arrived is named per robot; before the first event only when asked."""
    numbers = {"jetbot-1": (3, 4, 7, 12), "jetbot-2": (1, 2, 3)}
    store.add(Batch(events=[event(n, robot=robot) for robot, ns in numbers.items() for n in reversed(ns)]))
    inner = [Gap("lab", "jetbot-1", 5, 6), Gap("lab", "jetbot-1", 8, 11)]
    assert store.gaps() == inner
    assert store.gaps(from_first=True) == [Gap("lab", "jetbot-1", 1, 2), *inner]
    assert [gap.missing for gap in inner] == [2, 4]


def test_counts(store: Store) -> None:
    """Counts by type and by robot add up to what was stored."""
    kinds = ["collision", "metrics", "metrics"]
    store.add(Batch(events=[event(n, kind, robot) for robot in ("a", "b") for n, kind in enumerate(kinds, 1)]))
    assert store.counts_by_type() == {"collision": 2, "metrics": 4}
    assert store.counts_by_type("lab", "a") == {"collision": 1, "metrics": 2}
    assert store.counts_by_robot() == {("lab", "a"): 3, ("lab", "b"): 3}
    assert [row["type"] for row in store.recent(metrics=False)] == ["collision", "collision"]


def test_a_robot_is_its_latest(store: Store) -> None:
    """State, last event and metrics of a robot are the newest, whatever order the events come in."""
    old, new = event(4, "collision"), event(9, "intervention")
    metrics = event(10, "metrics", data={"decisions_per_s": 30.0}, time=later(1))
    late = event(3, "metrics", data={"decisions_per_s": 1.0}, time=later(-60))
    store.add(Batch(events=[new, metrics], states=[state()]))
    store.add(Batch(events=[old, late]))
    (row,) = store.robots()
    assert (row["online"], row["mode"], row["model_version"]) == (True, "driving", "3")
    assert (row["last_event"], row["last_event_type"]) == (new.id, "intervention")
    assert row["metrics"] == {"decisions_per_s": 30.0}
    assert row["last_sequence"] == 10  # metrics are numbered too


def test_a_last_will_takes_the_robot_offline_and_keeps_the_rest(store: Store) -> None:
    """A last will knows only that the robot is gone; a late one of an earlier start changes nothing."""
    will = state(online=False, mode="offline", at=later(-100), release="", model_version="", engine="")
    store.add(Batch(states=[state(), will]))
    (row,) = store.robots()
    assert (row["online"], row["mode"], row["model_version"]) == (False, "offline", "3")
    store.add(Batch(states=[state(session="s-2", at=later(1)), will]))
    assert store.robots()[0]["online"] is True


def test_a_forgotten_robot_keeps_its_events(store: Store) -> None:
    """Taking a robot off the list removes its row, not what it told."""
    store.add(Batch(events=[event()], states=[state()]))
    store.add(Batch(states=[Forgotten("lab", "jetbot-1")]))
    assert store.robots() == []
    assert store.count() == 1


def test_rejected_messages_are_bounded_and_counted(store: Store) -> None:
    """The same refused message is one row with a count; of many, the newest are kept."""
    again = Rejected("jetloop/v1/\0", b"\xff" * 100_000, "not JSON\n")
    for seconds in (1, 2, 3):
        store.add(Batch(rejected=[again]), later(seconds))
    (row,) = store.rejected()
    assert (row["times"], row["payload_bytes"], len(row["payload"])) == (3, 100_000, 2048)
    store.add(Batch(rejected=[Rejected("t", b"%d" % n, "bad") for n in range(MAX_REJECTED)]), later(9))
    assert len(store.rejected(limit=5000)) == MAX_REJECTED
    assert again.topic not in {row["topic"] for row in store.rejected(limit=5000)}


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """The writer runs with a write-ahead log and synchronous=FULL: what is acknowledged survives a power cut."""
    store = _sqlite(tmp_path)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_reader_sees_commits_and_cannot_write(store: Store, url: str) -> None:
    """The console and `trace` read beside the collector and change nothing."""
    reader = open_reader(url)
    assert reader.count() == 0
    store.add(Batch(events=[event()]))
    assert reader.count() == 1
    with pytest.raises(OperatorError, match=r"read-?only"):
        reader.add(Batch(events=[event(2)]))
    reader.close()


def test_a_row_of_a_robot_has_every_column() -> None:
    """What is written of a robot that has told one thing only names each column of the table."""
    now = later(0)
    columns = {column.name for column in tables.robots.columns}
    assert set(after_event(None, event(), now)) == set(after_state(None, state(), now)) == columns


def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """Every way in which a store's URL can be wrong ends in one line that says what to do."""
    (tmp_path / "file").write_text("not a database, but long enough to be taken for one" * 40)
    store = _sqlite(tmp_path)
    with sqlite3.connect(tmp_path / "events.db") as connection:
        connection.execute("update alembic_version set version_num = '0099'")
    store.close()
    cases = {
        "nonsense": "is not a URL",
        "sqlite://": "names no file",
        "mysql://u@h/d": "a store is sqlite",
        f"sqlite:///{tmp_path / 'file' / 'events.db'}": "give another --store",
        f"sqlite:///{tmp_path / 'file'}": "not a database",
        f"sqlite:///{tmp_path}": "does not work",
        f"sqlite:///{tmp_path / 'events.db'}": "version 0099",
    }
    for url, expected in cases.items():
        with pytest.raises(OperatorError, match=expected) as found:
            open_store(url)
        assert "\n" not in str(found.value)
    with pytest.raises(OperatorError, match=r"no store .*; `jetloop collector"):
        open_reader(f"sqlite:///{tmp_path / 'none.db'}")


def test_event_rows_need_no_field_that_the_contract_lacks() -> None:
    """Each column of an event comes from a field of the contract, so that none stays empty for ever."""
    renamed = {"captured_at": "time", "sent_at": "sentat", "received_at": "time"}
    fields = set(Event.__struct_fields__)
    columns = {column.name for column in tables.events.columns} - {"position"}
    assert {renamed.get(name, name) for name in columns} <= fields
