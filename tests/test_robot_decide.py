"""From logits to motion: facts that hold of every sequence of frames."""

import itertools
import math
from typing import List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import ControlSettings
from serving.contracts.releases import Decision
from serving.decide import Action, DriveState, Motion, decide, p_blocked

CONTROL = ControlSettings()
DECISION = Decision(blocked_threshold=0.5)
FRAME_S = 1 / 30

finite = st.floats(-1e6, 1e6)
logits_of_one = st.tuples(finite, finite)
controls = st.builds(
    ControlSettings,
    smoothing=st.floats(0, 0.95),
    hysteresis=st.floats(0, 0.49),
    turn=st.sampled_from(["left", "right", "alternate"]),
    stuck_after_s=st.floats(0.1, 2),
    back_off_s=st.floats(0.1, 1),
)
decisions = st.builds(Decision, blocked_threshold=st.floats(0.01, 0.99), temperature=st.floats(0.1, 10))


def logits_for(p: float) -> "tuple[float, float]":
    return math.log(p) - math.log1p(-p), 0.0


def drive(
    probabilities: List[float], control: ControlSettings = CONTROL, decision: Decision = DECISION
) -> "list[tuple[Action, DriveState]]":
    state, made = DriveState(), []
    for number, p in enumerate(probabilities):
        action, state = decide(logits_for(p), number * FRAME_S, state, decision, control)
        made.append((action, state))
    return made


@settings(max_examples=100, deadline=None)
@given(logits=logits_of_one, temperature=st.floats(0.05, 20))
def test_the_probability_is_the_softmax(logits: "tuple[float, float]", temperature: float) -> None:
    """For logits of any size: no overflow, and what numpy computes in the safe way."""
    scaled = np.array(logits, np.float64) / temperature
    expected = np.exp(scaled - scaled.max())
    assert p_blocked(logits, temperature) == pytest.approx(float(expected[0] / expected.sum()), abs=1e-9)


@pytest.mark.parametrize("bad", [(math.nan, 0.0), (0.0, math.inf), (-math.inf, -math.inf)])
def test_logits_that_are_not_finite_are_no_decision(bad: "tuple[float, float]") -> None:
    """They raise instead of driving somewhere."""
    with pytest.raises(ValueError, match="not finite"):
        p_blocked(bad, 1.0)


@settings(max_examples=100, deadline=None)
@given(sequence=st.lists(logits_of_one, min_size=1, max_size=60), control=controls, decision=decisions)
def test_speeds_stay_within_what_is_configured(
    sequence: "list[tuple[float, float]]", control: ControlSettings, decision: Decision
) -> None:
    """Whatever the network says, each motor gets a configured speed, and probabilities stay probabilities."""
    allowed = {
        Motion.FORWARD: (control.forward_speed, control.forward_speed),
        Motion.BACK: (-control.back_speed, -control.back_speed),
        Motion.LEFT: (-control.turn_speed, control.turn_speed),
        Motion.RIGHT: (control.turn_speed, -control.turn_speed),
    }
    state = DriveState()
    for number, logits in enumerate(sequence):
        action, state = decide(logits, number * FRAME_S, state, decision, control)
        assert (action.left, action.right) == allowed[action.motion]
        assert 0 <= action.p_smoothed <= 1
        assert 0 <= action.p_blocked <= 1
        assert (action.motion is Motion.FORWARD) == (not state.blocked and state.back_until_s is None)


@settings(max_examples=60, deadline=None)
@given(threshold=st.floats(0.02, 0.98), control=controls, share=st.floats(0, 1), frames=st.integers(1, 40))
def test_frames_at_or_over_the_threshold_never_drive_forward(
    threshold: float, control: ControlSettings, share: float, frames: int
) -> None:
    """The passport's threshold is what was evaluated: smoothing and hysteresis do not weaken it."""
    p = min(threshold + (1 - threshold) * share + 1e-9, 1 - 1e-12)
    made = drive([p] * frames, control, Decision(blocked_threshold=threshold))
    assert all(action.motion is not Motion.FORWARD for action, _ in made)


@settings(max_examples=60, deadline=None)
@given(sequence=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=120), control=controls)
def test_a_turn_keeps_its_direction_until_free_or_backed_off(sequence: List[float], control: ControlSettings) -> None:
    """Left is never followed by right, or right by left, without a forward or a back between them."""
    motions = [action.motion for action, _ in drive(sequence, control)]
    turns = {Motion.LEFT, Motion.RIGHT}
    assert not any({one, other} == turns for one, other in itertools.pairwise(motions))


def test_a_stuck_robot_backs_off_and_turns_the_other_way() -> None:
    """Turning for `stuck_after_s` without getting free: back, then right instead of left."""
    control = ControlSettings(stuck_after_s=1.0, back_off_s=0.3)
    motions = [action.motion for action, _ in drive([0.99] * 60, control)]
    changes = [motion for before, motion in zip([None, *motions], motions, strict=False) if motion is not before]
    assert changes == [Motion.LEFT, Motion.BACK, Motion.RIGHT]
    assert motions.count(Motion.BACK) == pytest.approx(0.3 / FRAME_S, abs=1)


def test_leaving_blocked_asks_for_more_than_entering() -> None:
    """Just below the threshold the robot keeps turning; below the band it drives on."""
    control = ControlSettings(smoothing=0.0, hysteresis=0.1)
    motions = [action.motion for action, _ in drive([0.45, 0.5, 0.45, 0.41, 0.39, 0.45], control)]
    left, forward = Motion.LEFT, Motion.FORWARD
    assert motions == [forward, left, left, left, forward, forward]


def test_alternate_turns_alternate() -> None:
    """Each new obstacle is passed on the other side."""
    control = ControlSettings(smoothing=0.0, turn="alternate")
    motions = [action.motion for action, _ in drive([0.9, 0.1, 0.9, 0.1, 0.9], control)][::2]
    assert motions == [Motion.LEFT, Motion.RIGHT, Motion.LEFT]


def test_a_new_engine_starts_without_the_old_ones_probability() -> None:
    """Two networks' probabilities are not averaged, but the turn under way goes on."""
    _, state = drive([0.9])[-1]
    fresh = state.for_new_engine()
    action, _ = decide(logits_for(0.8), 1.0, fresh, DECISION, ControlSettings(smoothing=0.9))
    assert action.p_smoothed == pytest.approx(0.8)
    assert action.motion is Motion.LEFT
