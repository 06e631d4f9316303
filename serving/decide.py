"""From two logits to what the motors do. Pure: no clock, no camera, no motors, so that the simulator's gate, the tests
and the robot all drive the same.

The rule is that of the Jetbot notebook (blocked: turn left; free: forward), made steady: the probability is smoothed,
leaving `blocked` asks for more than entering it, a turn keeps its direction until the way is free, and a robot that
keeps turning backs off a little and turns the other way.
"""

import enum
import math
from typing import Optional, Sequence, Union

import msgspec
import numpy as np

from serving.config import ControlSettings
from serving.contracts.releases import Decision

Logits = Union[Sequence[float], np.ndarray]  # (2,) blocked, free


class Motion(enum.Enum):
    FORWARD = "forward"
    LEFT = "left"
    RIGHT = "right"
    BACK = "back"


class Action(msgspec.Struct, frozen=True, gc=False):
    """What to do now.

    Attributes:
        left, right: motor speeds, -1..1, forward positive.
        p_blocked: of this frame alone, 0..1.
        p_smoothed: what was decided on, 0..1.
    """

    motion: Motion
    left: float
    right: float
    p_blocked: float
    p_smoothed: float


class DriveState(msgspec.Struct, frozen=True, gc=False):
    """What a decision remembers of the ones before. Times are those of the frames, in seconds.

    Attributes:
        p_smoothed: None before the first frame of an engine.
        turning: LEFT or RIGHT: where it turns, or turned last; None before the first turn.
        since_s: start of the turn that is under way; None while the way is free.
        back_until_s: end of backing off; None when it does not.
    """

    p_smoothed: Optional[float] = None
    blocked: bool = False
    turning: Optional[Motion] = None
    since_s: Optional[float] = None
    back_until_s: Optional[float] = None

    def for_new_engine(self) -> "DriveState":
        """The same drive with another network's probabilities, which are not to be mixed with the last one's."""
        return msgspec.structs.replace(self, p_smoothed=None)


def p_blocked(logits: Logits, temperature: float) -> float:
    """softmax(logits / temperature)[0], for logits of any size.

    Raises:
        ValueError: a logit is not finite.
    """
    blocked, free = float(logits[0]), float(logits[1])
    difference = (free - blocked) / temperature
    if math.isnan(difference) or math.isinf(blocked) or math.isinf(free):
        raise ValueError(f"logits {blocked} and {free} are not finite")
    if difference > 0:
        small = math.exp(-difference)
        return small / (1 + small)
    return 1 / (1 + math.exp(difference))


def decide(
    logits: Logits, now_s: float, state: DriveState, decision: Decision, control: ControlSettings
) -> "tuple[Action, DriveState]":
    """One decision.

    Args:
        logits: finite.
        now_s: when the frame was taken; never less than in the call before.
        state: what the last call returned; `DriveState()` at the start.
        decision: threshold and temperature, from the passport.
        control: speeds, smoothing and the rest, from robot.toml.
    """
    p = p_blocked(logits, decision.temperature)
    weight = 0.0 if state.p_smoothed is None else control.smoothing
    smoothed = weight * (state.p_smoothed or 0.0) + (1 - weight) * p
    # Entering at the passport's threshold is what was evaluated; only leaving asks for more.
    leave_below = max(decision.blocked_threshold - control.hysteresis, decision.blocked_threshold / 2)
    blocked = smoothed >= (leave_below if state.blocked else decision.blocked_threshold)
    motion, state = _move(blocked, now_s, msgspec.structs.replace(state, p_smoothed=smoothed), control)
    left, right = _speeds(motion, control)
    return Action(motion, left, right, p, smoothed), state


def _move(blocked: bool, now_s: float, state: DriveState, control: ControlSettings) -> "tuple[Motion, DriveState]":
    replace = msgspec.structs.replace
    if state.back_until_s is not None:
        if now_s < state.back_until_s:
            return Motion.BACK, replace(state, blocked=blocked)
        state = replace(state, back_until_s=None, turning=_other(state.turning), since_s=now_s)
    if not blocked:
        return Motion.FORWARD, replace(state, blocked=False, since_s=None)
    if state.since_s is None:
        state = replace(state, turning=_first_turn(state, control), since_s=now_s)
    elif now_s - state.since_s >= control.stuck_after_s:
        return Motion.BACK, replace(state, blocked=True, back_until_s=now_s + control.back_off_s)
    assert state.turning is not None
    return state.turning, replace(state, blocked=True)


def _first_turn(state: DriveState, control: ControlSettings) -> Motion:
    if control.turn == "alternate":
        return _other(state.turning)
    return Motion.RIGHT if control.turn == "right" else Motion.LEFT


def _other(turning: Optional[Motion]) -> Motion:
    return Motion.RIGHT if turning is Motion.LEFT else Motion.LEFT


def _speeds(motion: Motion, control: ControlSettings) -> "tuple[float, float]":
    if motion is Motion.FORWARD:
        return control.forward_speed, control.forward_speed
    if motion is Motion.BACK:
        return -control.back_speed, -control.back_speed
    if motion is Motion.LEFT:
        return -control.turn_speed, control.turn_speed
    return control.turn_speed, -control.turn_speed
