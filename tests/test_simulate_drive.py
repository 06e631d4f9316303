"""The closed loop and its suite: the robot's own decisions, the same every time, and counts that mean what they say."""

import contextlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.releases import Decision
from serving.decide import DriveState, Motion, decide
from serving.errors import OperatorError, RejectedError
from simulator import cli, suite
from simulator.arena import Arena
from simulator.drive import Network, drive, read_decision
from simulator.room import ROBOT_RADIUS_M, Pose, Room
from simulator.sessions import make_session
from simulator.settings import FIRST_JUDGING_SEED, LoopSettings, SuiteSettings
from simulator.suite import Episode, read_counts, run_suite, standstill, start_arena, write_counts
from tests.simulators.constant_network import BLOCKED, FREE, constant_network

SMALL = SuiteSettings(rooms=2, starts=1, seconds=6, frames_per_s=10)


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    return constant_network(tmp_path / "blocked.onnx", BLOCKED)


@pytest.fixture
def free(tmp_path: Path) -> Path:
    return constant_network(tmp_path / "free.onnx", FREE)


def driven(model: Path, settings: SuiteSettings = SMALL, processes: int = 1) -> list[Episode]:
    episodes = [one for room in run_suite(model, Decision(), settings, processes) for one in room]
    return sorted(episodes, key=lambda one: (one.seed, one.start))


class TwoMinds(Network):
    """Changes its mind every few frames, so that every motion comes up."""

    def __init__(self) -> None:
        self.decision = Decision(blocked_threshold=0.4, temperature=1.5)
        self.said: list[np.ndarray] = []

    def logits(self, frame: np.ndarray) -> np.ndarray:
        blocked = len(self.said) % 17 < 9
        self.said.append(np.array([2.0, -1.0] if blocked else [-1.0, 2.0], np.float32))
        return self.said[-1]


def test_it_decides_as_the_robot_does() -> None:
    """Each action is what serving.decide makes of the same logits at the frames' times."""
    network, loop = TwoMinds(), LoopSettings(frames_per_s=10)
    moments = list(islice(drive(Arena(1), network, loop), 60))
    state = DriveState()
    for number, (moment, said) in enumerate(zip(moments, network.said, strict=True)):
        action, state = decide(said, number / 10, state, network.decision, loop.control)
        assert moment.time_s == pytest.approx(number / 10)
        assert (moment.action, moment.blocked) == (action, state.blocked)
    assert {Motion.FORWARD, Motion.LEFT} <= {moment.action.motion for moment in moments}


def test_a_command_takes_effect_after_the_latency(free: Path) -> None:
    """Until a frame's decision has had its time, the motors do what they were told before."""

    steps = []

    class Noted(Arena):
        def step(self, left: float, right: float, dt_s: float) -> None:
            steps.append((left, right, round(dt_s, 6)))
            super().step(left, right, dt_s)

    list(islice(drive(Noted(1), Network(free, Decision()), LoopSettings(frames_per_s=20, latency_ms=40)), 3))
    assert steps == [(0.0, 0.0, 0.04), (0.4, 0.4, 0.01), (0.4, 0.4, 0.04), (0.4, 0.4, 0.01)]


def test_what_only_drives_on_hits_things_and_what_only_turns_stands_still(blocked: Path, free: Path) -> None:
    """The two worst networks: one misses every obstacle, the other stops for nothing and gets nowhere."""
    long = SuiteSettings(rooms=2, starts=2, seconds=12, frames_per_s=10)
    onward, turning = driven(free, long), driven(blocked, long)
    assert sum(one.counts.collisions for one in onward) >= 3
    assert all(len(one.hits) == one.counts.collisions for one in onward)
    assert sum(one.counts.false_stops for one in onward) == 0
    assert all(one.counts.missed == one.counts.blocked for one in onward)
    assert all(one.counts.stuck > 0.9 * one.counts.frames for one in turning)
    assert all(one.counts.false_stops == one.counts.free for one in turning)
    assert sum(one.counts.distance_m for one in turning) < 0.2 * sum(one.counts.distance_m for one in onward)


def test_the_outcome_does_not_depend_on_the_number_of_processes(free: Path) -> None:
    """Two processes or this one, today or tomorrow: the same ways, to the last digit."""
    here, apart = driven(free), driven(free, processes=2)
    assert [one.counts for one in here] == [one.counts for one in apart]
    assert all(np.array_equal(one.path, other.path) for one, other in zip(here, apart, strict=True))


def test_start_places_differ_and_are_free() -> None:
    """Each start is another place of the same room, clear of everything; the same number is the same place."""
    poses = [start_arena(FIRST_JUDGING_SEED, start).pose for start in range(4)]
    room = start_arena(FIRST_JUDGING_SEED, 0).room
    assert len(set(poses)) == 4
    assert all(room.gap_m(pose.x_m, pose.y_m) > ROBOT_RADIUS_M + 0.1 for pose in poses)
    assert start_arena(FIRST_JUDGING_SEED, 3).pose == poses[3]


def test_a_room_without_space_is_started_where_the_room_says() -> None:
    """Where no place is wide enough, the room's own start is taken instead of searching for ever."""
    tight = Room(1, 0.3, 0.3, 2.4, start=Pose(0.15, 0.15, 0.0))
    assert start_arena(1, 0, tight).pose == tight.start


def test_standing_still_is_told_from_turning_a_corner() -> None:
    """Only a stretch as long as the window, with hardly any way made, counts."""
    distance_m = np.concatenate([np.arange(30) * 0.02, np.full(20, 0.6), 0.6 + np.arange(30) * 0.02])
    stuck = standstill(distance_m, 15)
    assert not stuck[:20].any()
    assert stuck[30:48].all()
    assert not stuck[60:].any()
    assert not standstill(distance_m, 40).any()


@pytest.mark.parametrize("seed", [FIRST_JUDGING_SEED, FIRST_JUDGING_SEED + 7])
def test_rooms_for_judging_make_no_training_images(tmp_path: Path, seed: int) -> None:
    """Neither the function nor the command makes a session of them, not even as the last of several."""
    with pytest.raises(OperatorError, match="kept for judging"):
        make_session(tmp_path / "s.zip", session_id="s", source="s", seed=seed, images=4)
    asked = ["sessions", "--out", str(tmp_path / "out"), "--sessions", "2", "--seed", str(seed - 1)]
    refused = CliRunner().invoke(cli.group, asked)
    assert isinstance(refused.exception, OperatorError)
    assert not (tmp_path / "out").exists()


def test_what_cannot_drive_is_refused_in_one_line(tmp_path: Path, free: Path) -> None:
    """No file, no network, a network that answers nonsense, an export.json that is none."""
    (tmp_path / "none.onnx").write_bytes(b"no network")
    for model, family in (("missing.onnx", OperatorError), ("none.onnx", RejectedError)):
        with pytest.raises(family) as refusal:
            Network(tmp_path / model)
        assert "\n" not in str(refusal.value)
    with pytest.raises(RejectedError, match="no number"):
        driven(constant_network(tmp_path / "nan.onnx", (np.nan, 0.0)))
    assert read_decision(free) == Decision()
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(OperatorError, match=r"export\.json"):
        read_decision(free)


def test_a_latency_beyond_a_frame_is_refused() -> None:
    """The loop takes one frame after the other, as the robot's does."""
    with pytest.raises(ValueError, match="latency_ms"):
        LoopSettings(frames_per_s=30, latency_ms=40)


def test_a_drive_is_named_by_all_that_decides_it() -> None:
    """Another network, threshold or suite is another drive."""
    names = {
        suite.key("ab" * 32, Decision(), SMALL),
        suite.key("cd" * 32, Decision(), SMALL),
        suite.key("ab" * 32, Decision(blocked_threshold=0.4), SMALL),
        suite.key("ab" * 32, Decision(), SuiteSettings()),
    }
    assert len(names) == 4
    assert suite.key("ab" * 32, Decision(), SMALL) in names


def test_counts_survive_being_written(free: Path) -> None:
    """What is read back is what was counted, exactly; the ways driven are not kept."""
    episodes = driven(free)
    back = read_counts(write_counts(reversed(episodes)))
    assert [(one.seed, one.start, one.counts) for one in back] == [(o.seed, o.start, o.counts) for o in episodes]


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_other_text_in_their_place_is_rejected_or_empty(text: str) -> None:
    """Whatever lies where episodes should be, it ends in an answer or in one error of ours."""
    for content in (text, "seed,start,seconds\n" + text):
        with contextlib.suppress(RejectedError):
            assert read_counts(content) == []
