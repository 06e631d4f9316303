"""The outbox and the reporter: what was accepted is kept, in order, bounded, with numbers that are never used twice."""

import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.events import MAX_PAYLOAD_BYTES, Event
from serving.errors import OperatorError
from serving.outbox import EVENT, METRICS, Draft, Dropped, Message, Outbox
from serving.outbox_file import ROW_BYTES
from serving.reporter import MAX_IN_MEMORY, Reporter
from tests.conftest import ROOT, end, free_port, wait_for
from tests.test_link_parts import program

MEGABYTE = 1 << 20


def draft(kind: str = EVENT, size: int = 10) -> Draft:
    return Draft(kind, "t", lambda sequence: f"{sequence}".ljust(size).encode())


def numbers(messages: list[Message]) -> list[int]:
    return [int(message.payload) for message in messages]


def events_in(outbox: Outbox) -> list[Event]:
    return [msgspec.json.decode(message.payload, type=Event) for message in outbox.batch(100_000)]


def test_messages_come_out_oldest_first_until_they_are_done(tmp_path: Path) -> None:
    """batch(n, after) pages through the queue in order; done() forgets exactly those; a new start sees the rest."""
    outbox = Outbox(tmp_path / "outbox.db", MEGABYTE)
    outbox.put([draft() for _ in range(5)])
    outbox.put([draft() for _ in range(5)])
    first = outbox.batch(4)
    assert numbers(first) == [1, 2, 3, 4]
    assert numbers(outbox.batch(4, after=first[-1].id)) == [5, 6, 7, 8]
    outbox.done([message.id for message in first] + [12345])
    assert outbox.depth() == 6
    outbox.close()
    again = Outbox(tmp_path / "outbox.db", MEGABYTE)
    assert numbers(again.batch(100)) == [5, 6, 7, 8, 9, 10]
    assert (again.depth(), again.next_sequence) == (6, 11)


def test_numbers_are_not_used_twice_after_everything_was_sent(tmp_path: Path) -> None:
    """Neither sequences nor row ids begin anew when the queue is empty at a restart."""
    outbox = Outbox(tmp_path / "outbox.db", MEGABYTE)
    outbox.put([draft(), draft()])
    ids = [message.id for message in outbox.batch(10)]
    outbox.done(ids)
    outbox.close()
    again = Outbox(tmp_path / "outbox.db", MEGABYTE)
    again.put([draft()])
    (message,) = again.batch(10)
    assert int(message.payload) == 3
    assert message.id > max(ids)


def test_metrics_are_dropped_before_events(tmp_path: Path) -> None:
    """A full outbox gives up its oldest metrics; then new metrics; then its oldest events; and counts each."""
    cost = 10 + len("t") + ROW_BYTES
    outbox = Outbox(tmp_path / "outbox.db", 10 * cost)
    outbox.put([draft(METRICS) for _ in range(4)] + [draft() for _ in range(6)])
    outbox.put([draft(), draft()])
    assert numbers(outbox.batch(100)) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert outbox.dropped() == Dropped(metrics=2)
    outbox.put([draft() for _ in range(3)])
    assert numbers(outbox.batch(100)) == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    outbox.put([draft(METRICS)])
    assert numbers(outbox.batch(100)) == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert outbox.dropped() == Dropped(metrics=5, events=1)
    outbox.close()
    assert Outbox(tmp_path / "outbox.db", 10 * cost).dropped() == Dropped(metrics=5, events=1)


def test_what_was_dropped_is_told_once_there_is_room(tmp_path: Path) -> None:
    """While the outbox is full nothing is told; after the link drained it, one `outbox.dropped` event says how much."""
    outbox = Outbox(tmp_path / "outbox.db", 8 * 1024)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for _ in range(100):
        reporter.emit("metrics")
    wait_for(lambda: outbox.next_sequence > 100, what="all metrics passing through")
    dropped = outbox.dropped()
    assert dropped.metrics == 100 - outbox.depth()
    outbox.done([message.id for message in outbox.batch(100)])
    wait_for(lambda: outbox.depth() == 1, what="the report")
    (event,) = events_in(outbox)
    assert event.type == "outbox.dropped"
    assert event.data == {"metrics": dropped.metrics, "events": 0}
    assert outbox.dropped() == Dropped()
    reporter.close()


def test_an_event_carries_what_the_contract_asks(tmp_path: Path) -> None:
    """Type, time, robot, release and engine at the moment of emit; numpy values become JSON; too much data is left
    out, not the event."""
    outbox = Outbox(tmp_path / "outbox.db", MEGABYTE)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    reporter.emit("robot.started")
    reporter.engine_is("release-1", "e" * 64)
    reporter.emit("collision", {"p": np.float32(0.5), "ages": np.array([1, 2])})
    reporter.emit("intervention", {"text": "x" * MAX_PAYLOAD_BYTES})
    reporter.emit("intervention", {"object": object()})
    with pytest.raises(ValueError, match="no event type `colision`"):
        reporter.emit("colision")
    reporter.close()
    started, collision, large, odd = events_in(outbox)
    assert (started.release, started.engine) == ("", "")
    assert (collision.release, collision.engine) == ("release-1", "e" * 64)
    assert collision.data == {"p": 0.5, "ages": [1, 2]}
    assert (collision.site, collision.robot, collision.session) == ("lab", "r1", "s1")
    assert [event.sequence for event in (started, collision, large, odd)] == [1, 2, 3, 4]
    assert "left_out" in large.data
    assert "left_out" in odd.data
    assert outbox.batch(1)[0].topic == "jetloop/v1/lab/r1/event/robot.started"


def test_emit_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    """While another program locks the database, emit returns in well under a millisecond each; nothing is lost."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MEGABYTE)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    reporter.emit("collision")
    started = time.perf_counter()
    for _ in range(200):
        reporter.emit("collision")
    assert time.perf_counter() - started < 0.2
    lock.execute("ROLLBACK")
    lock.close()
    reporter.close()
    assert [event.sequence for event in events_in(outbox)] == list(range(1, 202))


@pytest.mark.parametrize("over", [0, 600])
def test_a_full_disk_is_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, over: int) -> None:
    """With no page left to write, events wait in memory, bounded; when there is room again they are stored in order,
    and what had to go is told."""
    outbox = Outbox(tmp_path / "outbox.db", 100 * MEGABYTE)
    outbox._file.execute("PRAGMA max_page_count = 12")
    reporter = Reporter(outbox, "lab", "r1", "s1")
    count = MAX_IN_MEMORY + over if over else 1200
    for _ in range(count):
        reporter.emit("collision")
    wait_for(lambda: "wait in memory" in caplog.text, what="the refusal being logged")
    assert "full" in caplog.text
    outbox._file.execute("PRAGMA max_page_count = 1000000")
    wait_for(lambda: "takes events again" in caplog.text, what="the good news")
    reporter.close()
    events = events_in(outbox)
    dropped = sum(event.data["events"] for event in events if event.type == "outbox.dropped")
    collisions = [event.id for event in events if event.type == "collision"]
    assert len(collisions) + dropped == count
    assert (dropped > 0) == (over > 0)
    assert collisions == sorted(collisions)
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)


def test_an_outbox_that_cannot_be_made_is_the_operators(tmp_path: Path) -> None:
    """A path that is a folder, or below a file, ends in one line."""
    with pytest.raises(OperatorError, match="check the disk"):
        Outbox(tmp_path, MEGABYTE)
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="state_dir"):
        Outbox(tmp_path / "file" / "outbox.db", MEGABYTE)


@settings(max_examples=25, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=3000), at=st.integers(0, 20_000))
def test_a_damaged_outbox_is_put_aside(garbage: bytes, at: int) -> None:
    """Garbage anywhere in the database file: it opens, or is put aside and begun anew; numbers only rise; putting and
    reading work."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.db"
        outbox = Outbox(path, MEGABYTE)
        outbox.put([draft(size=300) for _ in range(30)])
        outbox.close()
        content = bytearray(path.read_bytes())
        content[at : at + len(garbage)] = garbage
        path.write_bytes(content)
        again = Outbox(path, MEGABYTE)
        for attempt in range(3):
            try:
                again.put([draft(size=300)])
                newest = again.batch(1000)[-1]
                break
            except OperatorError:  # found while it was used: the next try has a new file
                assert attempt < 2
        assert int(newest.payload) > 0
        assert again.next_sequence > int(newest.payload)
        again.close()


def test_many_threads_may_emit_at_once(tmp_path: Path) -> None:
    """Events of eight threads are all stored, once each, with numbers without a gap."""
    outbox = Outbox(tmp_path / "outbox.db", 100 * MEGABYTE)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    threads = [threading.Thread(target=lambda: [reporter.emit("collision") for _ in range(250)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.close()
    events = events_in(outbox)
    assert [event.sequence for event in events] == list(range(1, 2001))
    assert len({event.id for event in events}) == 2000


def test_an_event_is_on_the_disk_within_a_moment(tmp_path: Path) -> None:
    """A single event is committed without waiting for others to fill a batch."""
    outbox = Outbox(tmp_path / "outbox.db", MEGABYTE)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    stored = threading.Event()
    outbox.on_put = stored.set
    waits = []
    for _ in range(10):
        stored.clear()
        started = time.perf_counter()
        reporter.emit("collision")
        assert stored.wait(5)
        waits.append(time.perf_counter() - started)
    reporter.close()
    assert sorted(waits)[5] < 0.05


def test_what_was_committed_survives_kill(tmp_path: Path) -> None:
    """A process killed with SIGKILL while it reports, 5 times: every number it said was committed is there, and the
    numbers of the next start go on above."""
    path = tmp_path / "outbox.db"
    said = 0
    for _ in range(5):
        process = subprocess.Popen(
            program(f"report_forever({str(path)!r}, {free_port()})"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for _ in range(4):
                before, said = said, int(process.stdout.readline())
                assert said > before
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().splitlines()
            said = int(rest[-1]) if rest else said
        finally:
            process.stdout.close()
            end(process)
    outbox = Outbox(path, 10 * MEGABYTE)
    sequences = [event.sequence for event in events_in(outbox)]
    assert sequences[: said - 1] == list(range(1, said))
    assert sequences == sorted(set(sequences))
    assert outbox.next_sequence > said
