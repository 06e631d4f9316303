"""Shadow mode: it watches with a real engine worker, tells what it saw, and is never in the way."""

import os
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.config import EngineSettings, ShadowSettings
from serving.decide import Action, Motion, p_blocked
from serving.disagreements import INDEX_FILE, Disagreement, Disagreements
from serving.errors import RejectedError
from serving.hardware.base import Frame
from serving.slots import Candidate
from serving.watcher import Watcher
from tests.conftest import wait_for
from tests.test_robot_parts import BRIGHT, DARK, TARGET, frame_of, logits_for, make_candidate


def disagreement(difference: float, **changes: Any) -> Disagreement:
    made = Disagreement(
        at="2026-11-23T10:00:00Z",
        drives="v1",
        shadow="v2",
        drives_p_blocked=0.0,
        shadow_p_blocked=difference,
        drives_blocked=False,
        shadow_blocked=difference >= 0.5,
    )
    return msgspec.structs.replace(made, **changes)


def lines(folder: Path) -> list[Disagreement]:
    raw = (folder / INDEX_FILE).read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Disagreement) for line in raw]


def jpegs(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".jpg"}


class Robot:
    """The control thread of a robot whose engine says what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drives = make_candidate(folder / "champion", "1")
        self.canary = make_candidate(folder / "canary", "2", convolutions=1)
        self.watcher = self.boot()

    def boot(self) -> Watcher:
        shadow = ShadowSettings(channel="canary", frames_per_s=100, keep_frames=5)
        return Watcher(shadow, EngineSettings(target=TARGET), self.folder / "disagreements")

    def offer(self, brightness: int, p: float, drives: Candidate | None = None) -> float:
        """Offers one frame; the seconds that it held up the control thread."""
        candidate = drives or self.drives
        loaded: Any = types.SimpleNamespace(passport=candidate.passport, candidate=candidate)
        begun_s = time.perf_counter()
        frame = Frame(frame_of(brightness), time.monotonic())
        self.watcher.offer(loaded, frame, Action(Motion.FORWARD, 0.4, 0.4, p, p))
        return time.perf_counter() - begun_s

    def until(self, brightness: int, p: float, compared: int, drives: Candidate | None = None) -> dict[str, Any]:
        """Offers frames until so many were compared; what was told."""
        total: dict[str, Any] = {"compared": 0, "disagreed": 0}

        def enough() -> bool:
            self.offer(brightness, p, drives)
            taken = self.watcher.take()
            counts = {key: total[key] + taken[key] for key in ("compared", "disagreed")}
            total.update(taken if taken["compared"] else {})
            total.update(counts)
            return bool(total["compared"] >= compared)

        wait_for(enough, what=f"{compared} compared frames")
        return total


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    made = Robot(tmp_path)
    made.watcher.start()
    yield made
    made.watcher.close()


def test_two_engines_that_agree(robot: Robot) -> None:
    """Same answer, same frame: no disagreement, no frame kept, latency and releases told."""
    robot.watcher.activate(robot.canary)
    told = robot.until(BRIGHT, p_blocked(logits_for(BRIGHT), 1.0), 5)
    assert (told["disagreed"], told["disagreement_rate"], told["kept"]) == (0, 0, 0)
    assert told["largest_difference"] < 1e-3
    assert told["release"] == robot.canary.passport.release_id
    assert 0 < told["latency_p50_ms"] <= told["latency_p99_ms"]


def test_a_disagreement_is_counted_and_its_frame_kept(robot: Robot) -> None:
    """The champion says free, the shadow blocked: the frame is kept as a JPEG with both probabilities."""
    robot.watcher.activate(robot.canary)
    told = robot.until(DARK, 0.1, 3)
    assert told["disagreed"] == told["compared"]
    folder = robot.folder / "disagreements"
    wait_for(lambda: (folder / INDEX_FILE).exists(), what="a kept frame")
    (kept,) = lines(folder)
    assert (kept.drives, kept.shadow) == (robot.drives.passport.release_id, robot.canary.passport.release_id)
    assert (kept.drives_p_blocked, kept.drives_blocked, kept.shadow_blocked) == (0.1, False, True)
    assert kept.shadow_p_blocked == pytest.approx(p_blocked(logits_for(DARK), 1.0), abs=1e-3)
    with Image.open(folder / kept.file) as image:
        assert image.size == (224, 224)
        assert abs(float(np.asarray(image).mean()) - DARK) < 2


def test_the_worker_runs_at_the_lowest_priority(robot: Robot) -> None:
    """The worker is as nice as can be; the daemon's own threads, which share Python's lock, are not."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    robot.watcher.activate(robot.canary)
    robot.until(BRIGHT, 0.1, 1)
    engine = robot.watcher._engine
    assert engine is not None
    assert os.getpriority(os.PRIO_PROCESS, engine.pid) == 19
    threads = [thread.native_id for thread in threading.enumerate() if thread.native_id]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {before}


def test_a_busy_shadow_drops_frames_and_holds_nobody_up(robot: Robot) -> None:
    """With its worker stopped in the middle, 1,000 offers pass in a moment each, and are counted as skipped."""
    robot.watcher.activate(robot.canary)
    robot.until(BRIGHT, 0.1, 1)
    engine = robot.watcher._engine
    assert engine is not None
    os.kill(engine.pid, 19)  # SIGSTOP
    try:
        robot.watcher.take()
        held_s = sorted(robot.offer(BRIGHT, 0.1) for _ in range(1000))
    finally:
        os.kill(engine.pid, 18)
    assert held_s[500] < 0.001
    assert robot.watcher.take()["skipped"] >= 990


def test_a_crash_of_the_shadow_is_mended_behind_the_scenes(robot: Robot) -> None:
    """Its worker is killed: counted, started again, and frames are compared again."""
    robot.watcher.activate(robot.canary)
    robot.until(BRIGHT, 0.1, 1)
    engine = robot.watcher._engine
    assert engine is not None
    os.kill(engine.pid, 9)
    failures = 0

    def mended() -> bool:
        nonlocal failures
        robot.offer(BRIGHT, 0.1)
        taken = robot.watcher.take()
        failures += taken["failures"]
        return failures > 0 and taken["compared"] > 0

    wait_for(mended, what="another comparison")
    assert failures == 1


def test_the_same_engine_is_not_compared_with_itself(robot: Robot) -> None:
    """Once the canary was promoted there is nothing to compare."""
    robot.watcher.activate(robot.canary)
    robot.until(BRIGHT, 0.1, 1)
    time_over_s = time.monotonic() + 0.5
    robot.watcher.take()
    while time.monotonic() < time_over_s:
        robot.offer(BRIGHT, 0.1, drives=robot.canary)
    assert robot.watcher.take()["compared"] <= 1  # one may have been under way


def test_an_unfit_shadow_is_refused_and_the_old_one_watches_on(robot: Robot) -> None:
    """Golden frames hold for the shadow too."""
    robot.watcher.activate(robot.canary)
    with pytest.raises(RejectedError, match="golden frames"):
        robot.watcher.activate(make_candidate(robot.folder / "shifted", "3", shift=1.0))
    told = robot.until(BRIGHT, 0.1, 2)
    assert told["release"] == robot.canary.passport.release_id


def test_a_newer_shadow_takes_over_and_a_reboot_goes_on_with_it(robot: Robot) -> None:
    """The old worker ends; after a reboot the engine that watched last is loaded without a network."""
    robot.watcher.activate(robot.canary)
    robot.until(BRIGHT, 0.1, 1)
    old = robot.watcher._engine
    newer = make_candidate(robot.folder / "newer", "3", convolutions=2)
    robot.watcher.activate(newer)

    def is_newer() -> bool:
        robot.offer(BRIGHT, 0.1)
        return bool(robot.watcher.take()["release"] == newer.passport.release_id)

    wait_for(is_newer, what="the newer one")
    assert old is not None
    assert old._process.returncode is not None
    robot.watcher.close()
    robot.watcher = robot.boot()
    robot.watcher.boot(newer)
    robot.watcher.start()
    assert robot.until(BRIGHT, 0.1, 1)["release"] == newer.passport.release_id


# What is kept


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.2, 1), max_size=25), st.integers(0, 6), st.integers(2000, 20_000))
def test_the_most_disagreeing_frames_are_kept_within_their_bounds(
    tmp_path_factory: pytest.TempPathFactory, differences: list[float], max_frames: int, max_bytes: int
) -> None:
    """Never more frames or bytes than allowed; what is on the disk is what the index says; the largest one stays."""
    folder = tmp_path_factory.mktemp("kept")
    kept = Disagreements(folder, max_frames, max_bytes)
    for number, difference in enumerate(differences):
        kept.consider(frame_of(number), disagreement(difference), number)
    if not (folder / INDEX_FILE).exists():
        assert not differences or not max_frames
        return
    named = lines(folder)
    assert {frame.file for frame in named} == jpegs(folder)
    assert len(named) <= max_frames
    assert sum((folder / frame.file).stat().st_size for frame in named) <= max_bytes
    assert max(frame.size for frame in named) == pytest.approx(max(differences))
    again = Disagreements(folder, max_frames, max_bytes)
    assert len(again) == len(kept) == len(named)


def test_what_a_power_failure_left_is_cleaned_up(tmp_path: Path) -> None:
    """A JPEG that no line names goes; a line whose JPEG is gone is forgotten."""
    kept = Disagreements(tmp_path, 10, 10**6)
    for number in range(3):
        assert kept.consider(frame_of(number), disagreement(0.5), number)
    (tmp_path / lines(tmp_path)[0].file).unlink()
    (tmp_path / "7-7.jpg").write_bytes(b"half a JPEG")
    assert len(Disagreements(tmp_path, 10, 10**6)) == 2
    assert len(jpegs(tmp_path)) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage", b"{}\n", b"[" * 100_000])
def test_a_damaged_index_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """Garbage in the index costs what was kept, and nothing else."""
    (tmp_path / INDEX_FILE).write_bytes(content)
    kept = Disagreements(tmp_path, 10, 10**6)
    assert len(kept) == 0
    assert kept.consider(frame_of(1), disagreement(0.5), 1)


def test_a_disk_that_refuses_costs_frames_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No folder can be made: two frames are lost, one line says so."""
    (tmp_path / "file").write_text("")
    kept = Disagreements(tmp_path / "file" / "folder", 10, 10**6)
    for number in range(2):
        assert not kept.consider(frame_of(number), disagreement(0.5), number)
    assert caplog.text.count("not kept until") == 1
