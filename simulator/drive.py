"""The closed loop: a network drives the arena's robot, with the robot's own decision code.

Frame, `serving.preprocess.into`, ONNX Runtime on one thread, `serving.decide.decide`, motors: what is called here is
what the robot calls. Time is the arena's, so that an hour of driving takes minutes; what a real loop needs of it
passes there, between a frame and the motors' new command.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving import preprocess
from serving.contracts.releases import Decision, ExportReport
from serving.decide import Action, DriveState, decide
from serving.errors import OperatorError, RejectedError, first_line
from serving.settings import convert
from simulator.arena import Arena
from simulator.room import Pose
from simulator.settings import LoopSettings


class Network:
    """An exported network with the decision that belongs to it.

    Args:
        path: of the ONNX file.
        decision: threshold and temperature; None: those of export.json beside the file, else the contract's defaults.

    Raises:
        OperatorError: the file or export.json cannot be read.
        RejectedError: it is no network for a robot.
    """

    def __init__(self, path: Path, decision: Decision | None = None) -> None:
        from serving.engine.ort_backend import Backend

        if not path.is_file():
            raise OperatorError(f"{path} is not there; `dvc repro export` makes build/export/model.onnx")
        try:
            self._backend = Backend(str(path), 1, preprocess)
        except Exception as problem:  # ONNX Runtime's own exceptions share no other base
            raise RejectedError(f"{path} cannot drive a robot: {first_line(problem)[:200]}") from None
        self.decision = decision if decision is not None else read_decision(path)

    def logits(self, frame: np.ndarray) -> np.ndarray:
        """(2,) float32, blocked first, valid until the next call; `frame` is (224, 224, 3) uint8, RGB.

        Raises:
            RejectedError: the network answers with what is no number.
        """
        preprocess.into(frame, self._backend.batch)  # type: ignore[no-untyped-call]
        self._backend.run()  # type: ignore[no-untyped-call]
        logits: np.ndarray = self._backend.logits[0]
        if not np.isfinite(logits).all():
            raise RejectedError(f"the network answers with {logits}, which is no number: train again")
        return logits


def read_decision(model: Path) -> Decision:
    """The decision that export.json, beside an ONNX file, names; without that file, the contract's defaults.

    Raises:
        OperatorError: export.json is there and is not by contract.
    """
    path = model.with_name("export.json")
    try:
        return convert(json.loads(path.read_text(encoding="utf-8")), ExportReport, str(path)).decision
    except FileNotFoundError:
        return Decision()
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro export`") from None


class Moment(NamedTuple):
    """What was so when a frame was taken, and what was decided on it."""

    time_s: float
    pose: Pose
    frame: np.ndarray  # (224, 224, 3) uint8, RGB
    action: Action
    blocked: bool  # what the robot holds its way for, smoothed and with hysteresis
    collisions: int  # since the start
    distance_m: float  # since the start


def drive(arena: Arena, network: Network, loop: LoopSettings) -> Iterator[Moment]:
    """Drives from where the robot stands, without end: one moment a frame. The arena moves on when the next is asked.

    Raises:
        RejectedError: the network answers with what is no number.
    """
    frame_s, latency_s = 1.0 / loop.frames_per_s, loop.latency_ms / 1e3
    state, left, right = DriveState(), 0.0, 0.0
    while True:
        taken_s, pose = arena.time_s, arena.pose
        collisions, distance_m = arena.collisions, arena.distance_m
        frame = arena.render()
        action, state = decide(network.logits(frame), taken_s, state, network.decision, loop.control)
        yield Moment(taken_s, pose, frame, action, state.blocked, collisions, distance_m)
        arena.step(left, right, latency_s)  # until the new command is there, the last one holds
        left, right = action.left, action.right
        arena.step(left, right, frame_s - latency_s)
