"""kill -9 of the release service, anywhere: one release, signed once, and nothing half published."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from tests import release_lab
from tests.conftest import wait_for
from tests.release_desk import TARGET, Desk
from tests.release_lab import Jetloop, Lab

lab, jetloop = release_lab.lab, release_lab.jetloop  # fixtures

RANDOM_KILLS = int(os.environ.get("JETLOOP_KILLS", "12"))  # `make chaos-release` sets it to 200
# What is ours in a release; the rest (SQLite, python-tuf, ONNX Runtime) is called from there.
TRACED = "pipelines/release/"


def reconcile_until(folder: Path, kill_at: int, lines: Any) -> None:
    """Starts a service on `folder` and kills it before its n-th line; counts the lines that it ran."""
    ran = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal ran
        if TRACED not in frame.f_code.co_filename:
            return None
        if event == "line":
            if ran == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            ran += 1
        return trace

    sys.settrace(trace)
    desk = Desk(folder)
    while desk.service.reconcile():
        pass
    sys.settrace(None)
    lines.value = ran


def run_killed(folder: Path, kill_at: int) -> int | None:
    """How many lines a service ran until there was nothing to do; None when it was killed before its n-th."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.release_desk", "onnxruntime"])
    lines = context.Value("i", 0)
    process = context.Process(target=reconcile_until, args=(folder, kill_at, lines))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return int(lines.value) if process.exitcode == 0 else None


def assert_released_once(desk: Desk, released: list[str], sequence: int) -> None:
    """Every version was released once, the newest runs, and a robot's view of the repository is whole."""
    found = [one for one in desk.told() if one[2] == "released"]
    assert [one[1] for one in found] == released
    assert [one[3] for one in found] == list(range(1, sequence + 1))
    repository = Repository.open(desk.folder, Keys({}))
    channel = repository.channel("champion")
    assert channel
    assert (channel.sequence, channel.model_version) == (sequence, released[-1])
    passport = repository.passport(channel.passports[TARGET])
    repository.read(passport.engine.path)
    repository.read(passport.golden.path)
    assert desk.status(released[-1]) == "released"


def test_killed_at_random_lines_each_version_is_released_once(tmp_path: Path) -> None:
    """Version after version is promoted while the service is killed before random lines of its code."""
    desk = Desk(tmp_path)
    seed = int(os.environ.get("JETLOOP_SEED", "0")) or random.randrange(1, 2**31)
    print(f"seed {seed}")
    chance = random.Random(seed)
    released, kills, lines = [], 0, 1500
    while kills < RANDOM_KILLS:
        version = desk.registry.add()
        desk.promote(version)
        released.append(version)
        tries = 0
        while True:
            # At first anywhere; then early, where it goes on from; then it may end.
            ran = run_killed(tmp_path, chance.randrange(lines) if tries < 6 else 10**9)
            if ran is not None:
                break
            tries, kills = tries + 1, kills + 1
        lines = max(lines, ran)
        assert_released_once(desk, released, len(released))
    desk.repository.sweep()
    assert not list(desk.folder.rglob(".writing-*"))
    print(f"{kills} kills, {len(released)} releases, none lost, none twice")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("state", ["pending", "gated", "compiled", "verified", "signed", "released"])
def test_killed_around_each_transition(tmp_path: Path, state: str, before: bool) -> None:
    """Before a state is written down, and right after: the next service goes on, and compiles nothing twice."""
    desk = Desk(tmp_path)
    version = desk.registry.add()
    desk.promote(version)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.release_desk", "onnxruntime"])
    process = context.Process(target=killed_around, args=(tmp_path, state, before))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    engines = [file.stat().st_mtime_ns for file in (desk.folder / "staging").glob("*")]
    again = Desk(tmp_path)
    again.service.reconcile()
    assert_released_once(again, [version], 1)
    assert again.states() == ["pending", "gated", "compiled", "verified", "signed", "released"]
    if engines:
        assert [file.stat().st_mtime_ns for file in (desk.folder / "staging").glob("*")] == engines


def killed_around(folder: Path, state: str, before: bool) -> None:
    from pipelines.release import journal

    note, real = journal._note, os.kill
    journal_commit = journal.Journal.move

    def die(*_: object) -> None:
        real(os.getpid(), signal.SIGKILL)

    def noting(db: Any, attempt_id: int, to: Any, at: str, reason: str) -> None:
        if before and to.value == state:
            die()
        note(db, attempt_id, to, at, reason)

    def moving(self: Any, attempt: Any, to: Any, reason: str = "", **fields: Any) -> Any:
        moved = journal_commit(self, attempt, to, reason, **fields)
        if not before and to.value == state:
            die()
        return moved

    begun = journal.Journal.begin

    def beginning(*arguments: Any) -> Any:
        attempt = begun(*arguments)
        if not before and state == "pending":
            die()
        return attempt

    journal._note, journal.Journal.move, journal.Journal.begin = noting, moving, beginning  # type: ignore[method-assign,assignment]
    Desk(folder).service.reconcile()


# `jetloop release serve`, killed when the timestamp is in place and the journal does not know it yet.
KILLED_AFTER_PUBLISHING = """
import os, signal
from pipelines.release.repository import Repository
publish = Repository.publish
def killed(*arguments):
    publish(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
Repository.publish = killed
from pipelines.cli import main
main()
"""


def test_the_process_killed_just_after_publishing_finishes(lab: Lab, jetloop: Jetloop) -> None:
    """With MLflow and HTTP: the second process tells MLflow and signs nothing; what robots pull is whole."""
    version = lab.version()
    lab.promote(version)
    lab.serve("--no-webhook", program=("-c", KILLED_AFTER_PUBLISHING))
    process = lab.process
    assert process
    wait_for(lambda: process.poll() is not None, timeout_s=60, what=f"the kill ({lab.said()})")
    assert process.returncode == -signal.SIGKILL
    assert lab.tags(version)["release.status"] == "pending"
    assert lab.channel()

    lab.serve("--no-webhook")
    lab.wait_for_status(version, "released")
    channel = lab.channel()
    assert channel
    assert (channel.sequence, channel.model_version) == (1, version)
    lab.pull(channel.passports[TARGET])
    wait_for(lambda: [one["status"] for one in lab.get("/api/releases")] == ["released"], what="the list")
    assert [entry["sequence"] for entry in lab.get("/api/releases")] == [1]
    assert lab.said().count("is published") == lab.said().count("compiled for") - 1 == 0
    code, shown, _ = jetloop("release", "status", "--folder", str(lab.release))
    assert code == 0
    assert "running" in shown
    second = lab.process
    assert second
    second.terminate()
    assert second.wait(timeout=30) == 0
