"""The archive when things go wrong: kills, two at once, a bad S3, a full disk. Each event is in it exactly once."""

import errno
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serving.errors import OperatorError
from telemetry import archive_manifest, archive_places, archive_run, tables
from telemetry.archive import group
from telemetry.archive_manifest import Manifest, commit, newest
from telemetry.archive_places import Folder, place_of
from telemetry.archive_run import compact, run
from telemetry.store import Batch, Store, open_reader, open_store
from tests.servers.postgres import postgres  # noqa: F401
from tests.servers.s3 import s3  # noqa: F401
from tests.simulators.unsteady_s3 import UnsteadyS3
from tests.test_archive import made, place, quiet, rows  # noqa: F401
from tests.test_telemetry_samples import event
from tests.test_telemetry_store import store, url  # noqa: F401

KILLS = 7
_warm = multiprocessing.get_context("forkserver")  # has imported what the commands need: only the work is killed
_warm.set_forkserver_preload(["tests.test_archive_faults", "boto3"])


def exactly_once(store: Store, archive: Any) -> None:
    """All events of the store, none twice, none else."""
    found = [row["id"] for row in rows(archive, "select id from events")]
    assert len(found) == len(set(found)) == store.count()
    assert set(found) == ids(store)


def ids(store: Store) -> set[str]:
    with store.transaction() as connection:
        return set(connection.execute(sa.select(tables.events.c.id)).scalars())


def filled(url: str, events: int) -> Store:
    store = open_store(url)
    store.add(Batch(events=made(events)))
    return store


def archive_command(words: list[str]) -> None:
    """`jetloop archive`, in a process of its own."""
    group(words)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_kill_9_at_random_moments(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`run` and `compact`, killed again and again while events come: at every moment what is readable is right."""
    address = f"sqlite:///{tmp_path / 'events.db'}"
    store, options = filled(address, 100), ["--to", str(tmp_path / "archive")]
    if where == "s3":
        server = request.getfixturevalue("s3")
        options = ["--to", f"s3://{server.bucket}/killed", "--endpoint-url", server.endpoint]
    archive = place_of(options[1], options[3] if where == "s3" else "")
    chance, killed, whole_s = random.Random(11), 0, 0.0
    for attempt in range(KILLS):
        store.add(Batch(events=made(200, 10_000 + attempt * 200)))
        work = ["compact"] if attempt % 3 == 0 and attempt else ["run", "--store", address, "--rows", "20"]
        process = _warm.Process(target=archive_command, args=([*work, *options],))
        begun_s = time.monotonic()
        process.start()
        process.join(timeout=None if attempt < 2 else chance.uniform(0.2, 0.7) * whole_s)
        if attempt < 2:  # left alone, to know how long one takes; the first also waits for the imports
            whole_s = time.monotonic() - begun_s
        killed += process.is_alive()
        process.kill()
        process.join()
        if newest(archive) is not None:
            found = [row["id"] for row in rows(archive, "select id from events")]
            assert len(found) == len(set(found))
            assert set(found) <= ids(store)
    assert killed >= 2
    run(store, archive, 1000, quiet)
    compact(archive, 10_000_000, quiet)
    exactly_once(store, archive)
    store.close()


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_several_archivers_at_once(url: str, where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Three run and one compacts at the same time, while the collector stores: each event is there once."""
    store, endpoint, target = filled(url, 2000), "", str(tmp_path / "archive")
    if where == "s3":
        server = request.getfixturevalue("s3")
        endpoint, target = server.endpoint, f"s3://{server.bucket}/together-{random.getrandbits(40)}"
    problems: list[BaseException] = []

    def guarded(what: Any) -> None:
        try:
            what()
        except BaseException as problem:
            problems.append(problem)

    def archiver() -> None:
        reader = open_reader(url)
        run(reader, place_of(target, endpoint), 500, quiet)
        reader.close()

    def compactor() -> None:
        for _ in range(3):
            compact(place_of(target, endpoint), 10_000_000, quiet)

    def collector() -> None:
        for batch in range(20):
            store.add(Batch(events=made(50, 50_000 + 50 * batch)))

    threads = [
        threading.Thread(target=guarded, args=(w,)) for w in (archiver, archiver, archiver, compactor, collector)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    archive = place_of(target, endpoint)
    run(store, archive, 500, quiet)
    exactly_once(store, archive)
    store.close()


def test_positions_that_commit_late_are_not_passed_over(postgres: Any, tmp_path: Path) -> None:
    """On PostgreSQL a collector may commit after another that got higher positions: the archive waits for it."""
    address = postgres.database()
    slow, fast = open_store(address), open_store(address)
    archive = place_of(str(tmp_path / "archive"))
    archiver = threading.Thread(target=lambda: run(open_reader(address), archive, 1000, quiet))
    with slow.transaction() as connection:
        from serving.contracts.events import utc_now
        from telemetry.databases import Lock, lock
        from telemetry.store_events import add

        lock(connection, Lock.WRITING, shared=True)
        add(connection, [event(1)], utc_now())
        fast.add(Batch(events=[event(2)]))
        archiver.start()
        archiver.join(timeout=0.5)
        assert archiver.is_alive()
    archiver.join(timeout=20)
    assert sorted(row["sequence"] for row in rows(archive)) == [1, 2]
    slow.close()
    fast.close()


def test_an_s3_that_answers_503(s3: Any, tmp_path: Path) -> None:
    """Requests that were refused, and ones that were done without an answer: tried again, and nothing twice."""
    store = filled(f"sqlite:///{tmp_path / 'events.db'}", 2000)
    with UnsteadyS3(s3.endpoint, share=0.25) as unsteady:
        target = f"s3://{s3.bucket}/unsteady"
        run(store, place_of(target, unsteady.endpoint), 500, quiet)
        compact(place_of(target, unsteady.endpoint), 10_000_000, quiet)
        exactly_once(store, place_of(target, unsteady.endpoint))
    assert unsteady.refused > 3
    assert unsteady.unanswered > 3
    exactly_once(store, place_of(target, s3.endpoint))
    store.close()


def test_an_s3_that_is_away_is_one_line(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket, no server: the line says so, and nothing is in the archive."""
    monkeypatch.setattr(archive_places, "_ATTEMPTS", 1)
    store = filled(f"sqlite:///{tmp_path / 'events.db'}", 2000)
    for target, endpoint in ((f"s3://{s3.bucket}/away", "http://127.0.0.1:9"), ("s3://no-such-bucket/x", s3.endpoint)):
        with pytest.raises(OperatorError, match="run it again later") as found:
            run(store, place_of(target, endpoint), 500, quiet)
        assert "\n" not in str(found.value)
    store.close()


class Overwriting(Folder):
    """Like an S3 server that knows nothing of If-None-Match."""

    def create(self, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True


def test_a_server_without_conditional_writes_is_refused(store: Store, tmp_path: Path) -> None:
    """Two archivers would overwrite each other's manifest there."""
    archive = Overwriting(tmp_path / "archive")
    store.add(Batch(events=made(2)))
    run(store, archive, 1000, quiet)
    with pytest.raises(OperatorError, match="ignores If-None-Match"):
        run(store, archive, 1000, quiet)


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_full_disk_is_one_line_and_costs_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever step finds no room: the archive is as before, no half file lies there, and the next run goes on."""
    archive = Folder(tmp_path / "archive")
    store.add(Batch(events=made(20)))
    run(store, archive, 5, quiet)
    store.add(Batch(events=made(20, 21)))
    before, real, calls = newest(archive), getattr(os, call), []

    def full(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == (3 if call != "link" else 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **more)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OperatorError, match="No space left on device"):
        run(store, archive, 1000, quiet)
    monkeypatch.undo()
    assert newest(archive) == before
    assert not [found.path for found in archive.list("") if ".new-" in found.path]
    run(store, archive, 1000, quiet)
    exactly_once(store, archive)


def test_a_commit_that_comes_too_late_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may have been swept as orphans meanwhile."""
    from tests.test_telemetry_samples import later

    archive = Folder(tmp_path / "archive")
    with pytest.raises(OperatorError, match="run it again with fewer rows"):
        commit(archive, None, lambda current: current, later(-7 * 3600))
    assert newest(archive) is None
    assert commit(archive, None, lambda current: current, later(-5 * 3600)) is not None


def test_an_unknown_or_damaged_manifest_is_refused(tmp_path: Path) -> None:
    """Nothing is added to an archive that is not understood."""
    archive = Folder(tmp_path / "archive")
    archive.put("manifests/0000000001.json", b'{"format": 2, "files": {}}')
    with pytest.raises(OperatorError, match="use the jetloop that wrote it"):
        newest(archive)
    archive.put("manifests/0000000001.json", b"{")
    with pytest.raises(OperatorError, match="is damaged"):
        newest(archive)


def test_a_compaction_that_was_overtaken_leaves_no_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two compactions of the same files the slower one throws its own away."""
    archive = Folder(tmp_path / "archive")
    for first in (1, 9):
        store.add(Batch(events=made(8, first)))
        run(store, archive, 1000, quiet)
    real = archive_manifest.commit

    def overtaken(place: Any, base: Manifest, *rest: Any) -> Any:
        monkeypatch.undo()
        compact(archive, 10_000_000, quiet)
        return real(place, base, *rest)

    monkeypatch.setattr(archive_run, "commit", overtaken)
    assert compact(archive, 10_000_000, quiet).files == 0
    current = newest(archive)
    dropped = {one.path for one in current.dropped}
    assert {found.path for found in archive.list("events/")} == {file.path for file in current.files} | dropped
    exactly_once(store, archive)
