"""The outbox where the disk is full, read-only or the process killed, and where events grow old."""

import logging
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.contracts.events import Event
from serving.outbox import EVENT, METRICS, Draft, Dropped, Outbox
from serving.reporter import MAX_IN_MEMORY, Reporter
from tests.conftest import ROOT, wait_for

MEGABYTE = 1 << 20


def draft(kind: str = EVENT, size: int = 300) -> Draft:
    return Draft(kind, "t", lambda sequence: f"{sequence}".ljust(size).encode())


def program(call: str) -> list[str]:
    """Command line that runs a function of this file."""
    return [sys.executable, "-c", f"from tests.test_link_faults import *; {call}"]


def put_and_forget(path: str) -> None:
    """Puts three at a time and forgets one, until killed; says `p N` when put() of N returned, `d ID` after done()."""
    outbox = Outbox(Path(path), 100 * MEGABYTE)
    while True:
        outbox.put([draft(), draft(), draft()])
        print("p", outbox.next_sequence - 1, flush=True)
        oldest = outbox.batch(1)[0].id
        outbox.done([oldest])
        print("d", oldest, flush=True)


def test_what_put_has_acknowledged_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    """kill -9 at 10 random moments: what put() returned for is there once, in order, numbers without a gap; what
    done() returned for does not come back; the file is never damaged."""
    path = tmp_path / "outbox.db"
    put = 0
    forgotten: set[int] = set()
    for _ in range(10):
        child = subprocess.Popen(program(f"put_and_forget({str(path)!r})"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(random.uniform(0, 0.05))  # the moment of the kill is chance
        child.kill()
        said += child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        for line in said[:-1]:  # the last one may be cut off
            what, number = line.split()
            put = int(number) if what == "p" else put
            forgotten |= {int(number)} if what == "d" else set()
        outbox = Outbox(path, 100 * MEGABYTE)
        waiting = outbox.batch(1_000_000)
        numbers = [int(message.payload) for message in waiting]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[-1] >= put
        assert not forgotten & {message.id for message in waiting}
        assert outbox.depth() == len(waiting)
        assert outbox.next_sequence == numbers[-1] + 1
        outbox.close()
    assert put > 30
    assert not (tmp_path / "outbox.db.damaged").exists()


def test_the_old_is_dropped_counted_and_told(tmp_path: Path) -> None:
    """What waited longer than max_age_s goes, a few at a time; the younger stays; an `outbox.dropped` event says how
    many of each."""
    outbox = Outbox(tmp_path / "outbox.db", 10 * MEGABYTE, max_age_s=3600)
    outbox.put([draft() for _ in range(500)] + [draft(METRICS) for _ in range(100)])
    assert outbox.expire() == 0
    outbox._file._clock_from_s -= 3601  # an hour of running
    outbox.put([draft()])
    outbox._expire_at_s = 0
    dropped = [outbox.expire() for _ in range(4)]
    assert dropped == [200, 200, 200, 0]
    assert outbox.depth() == 1
    assert outbox.dropped() == Dropped(metrics=100, events=500)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    wait_for(lambda: outbox.depth() == 2, what="the report")
    reporter.close()
    report = msgspec.json.decode(outbox.batch(2)[1].payload, type=Event)
    assert (report.type, report.data) == ("outbox.dropped", {"metrics": 100, "events": 500})


def test_a_clock_that_jumps_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ten years forward, as when a robot without a clock battery hears the time, nor a month switched off: age
    is counted while an outbox is open, and goes on at the next start."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MEGABYTE, max_age_s=3600)
    outbox.put([draft()])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10 * 365 * 86_400)
    assert outbox.expire() == 0
    outbox._file._clock_from_s -= 1800
    outbox.put([draft()])
    outbox.close()
    again = Outbox(path, MEGABYTE, max_age_s=3600)
    assert again.expire() == 0
    assert again._file.clock_s() >= 1800
    again._file._clock_from_s -= 1801
    again._expire_at_s = 0
    assert again.expire() == 1
    assert again.depth() == 1


def test_in_memory_too_metrics_go_before_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk refuses and memory is full, metrics make room for events; what went is told when it is over."""
    outbox = Outbox(tmp_path / "outbox.db", 100 * MEGABYTE)
    refusing = "PRAGMA query_only = ON"
    with outbox._file.reading():
        outbox._file.execute(refusing)
    reconnect = outbox._file._open
    monkeypatch.setattr(outbox._file, "_open", lambda: (reconnect(), outbox._file.execute(refusing)))
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for number in range(MAX_IN_MEMORY):
        reporter.emit("metrics" if number % 50 == 0 else "collision", {"number": number})
    for number in range(60):
        reporter.emit("collision", {"number": MAX_IN_MEMORY + number})
    monkeypatch.setattr(outbox._file, "_open", reconnect)
    outbox._file._disconnect()
    wait_for(lambda: outbox.depth() > MAX_IN_MEMORY - 100, what="the disk taking events again")
    reporter.close()
    events = [msgspec.json.decode(message.payload, type=Event) for message in outbox.batch(100_000)]
    numbers = [event.data["number"] for event in events if event.type == "collision"]
    assert numbers == [number for number in range(MAX_IN_MEMORY + 60) if number % 50 or number >= MAX_IN_MEMORY]
    (report,) = [event.data for event in events if event.type == "outbox.dropped"]
    assert report == {"metrics": 60, "events": 0}


def mounted(folder: str, options: str = "size=700k") -> Path:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    return Path(folder)


def told() -> list[str]:
    """What is logged from now on; it goes to stderr too."""
    lines: list[str] = []

    class Keep(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            lines.append(record.getMessage())

    logging.getLogger().addHandler(Keep())
    return lines


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass


def on_a_full_disk(folder: str, full_at_start: bool) -> None:
    """A disk without a free byte, at the start or later; then there is room again."""
    log = told()
    disk = mounted(folder)
    if full_at_start:
        fill(disk / "ballast")
    outbox = Outbox(disk / "outbox.db", 100 * MEGABYTE)
    if not full_at_start:
        fill(disk / "ballast")
    reporter = Reporter(outbox, "lab", "r1", "s1")
    slowest_s = 0.0
    for number in range(400):
        begun_s = time.perf_counter()
        reporter.emit("collision", {"number": number})
        slowest_s = max(slowest_s, time.perf_counter() - begun_s)
    wait_for(lambda: any("tried again every" in line for line in log), what="events waiting in memory")
    (disk / "ballast").unlink()
    wait_for(lambda: outbox.depth() == 400, what="events on the disk")
    reporter.close()
    events = [msgspec.json.decode(message.payload, type=Event) for message in outbox.batch(1000)]
    assert [event.sequence for event in events] == list(range(1, 401))
    assert [event.data["number"] for event in events] == list(range(400))
    assert slowest_s < 0.1, slowest_s
    print("passed")


def on_a_read_only_disk(folder: str) -> None:
    """Read-only when the daemon starts; then mounted for writing."""
    log = told()
    disk = mounted(folder)
    before = Outbox(disk / "outbox.db", MEGABYTE)
    before.put([draft()])
    before.close()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    outbox = Outbox(disk / "outbox.db", MEGABYTE)
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for _ in range(50):
        reporter.emit("collision")
    wait_for(lambda: any("tried again every" in line for line in log), what="events waiting in memory")
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    wait_for(lambda: outbox.depth() == 51, what="events on the disk")
    reporter.close()
    assert outbox.next_sequence == 52
    print("passed")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("on_a_full_disk({!r}, False)", "full"),
        ("on_a_full_disk({!r}, True)", "driving on, events wait in memory"),
        ("on_a_read_only_disk({!r})", "driving on, events wait in memory"),
    ],
    ids=["full-later", "full-at-start", "read-only"],
)
def test_a_disk_that_refuses_is_waited_out(tmp_path: Path, call: str, said: str) -> None:
    """A real file system, full or read-only: nobody who tells something waits, the log says so, nothing is lost or out
    of order once there is room, and the outbox that was there is not put aside."""
    alone = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount; run it as root")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*alone, *program(call.format(str(disk)))], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "passed\n", done.stderr
    assert said in done.stderr
    assert "put aside" not in done.stderr
