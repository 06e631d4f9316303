"""The suite: rooms that no network was trained on, driven through one after the other, and what came of it.

Rooms, start places and motors follow from the seeds; the same network on the same suite drives the same way, whatever
the number of processes. What the episodes amount to is in scores.py.
"""

import csv
import hashlib
import io
import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

import serving.decide
import serving.judge
import serving.preprocess
import simulator
from serving.contracts.releases import Decision
from serving.errors import OperatorError, RejectedError
from serving.judge import Tally
from simulator import labels
from simulator.arena import Arena
from simulator.drive import Moment, Network, drive
from simulator.furnish import make_room
from simulator.room import ROBOT_RADIUS_M, Pose, Room
from simulator.settings import SuiteSettings

_START_GAP_M = 0.12  # between the robot's body and the nearest thing: it can turn, and is not yet in trouble
_START_TRIES = 500
_SHOWS_ONLY = {"cli", "distances", "hardware", "motors", "scores", "suite_pictures", "topview", "watch"}  # modules
STANDSTILL_S, STANDSTILL_M = 4.0, 0.10  # who gets no further than this in so long is stuck, or turns without end


class Counts(NamedTuple):
    """What one drive, or several, amount to. Frames stand for time."""

    seconds: float = 0.0
    distance_m: float = 0.0
    collisions: int = 0
    frames: int = 0
    stuck: int = 0  # frames within STANDSTILL_S in which the robot got no further than STANDSTILL_M
    free: int = 0  # frames whose way ahead is free by geometry, beyond argument
    false_stops: int = 0  # of these, held for blocked
    blocked: int = 0
    missed: int = 0  # of these, held for free
    turning: int = 0  # frames whose decision is not `forward`
    spins: int = 0  # as the robot's probation counts them


class Episode(NamedTuple):
    """One drive from one place."""

    seed: int  # of the room
    start: int
    counts: Counts
    path: np.ndarray  # (frames, 2) float32: x and y at each frame, in metres
    hits: np.ndarray  # (collisions, 2) float32: where the robot's centre was


def start_arena(seed: int, start: int, room: Room | None = None, site: int | None = None) -> Arena:
    """The room of a seed with the robot in its start place of that number."""
    arena = Arena(seed, room=room, site=site)
    arena.place(_start_pose(arena.room, start))
    return arena


def _start_pose(room: Room, start: int) -> Pose:
    rng = np.random.default_rng([room.seed, 10, start])
    for _ in range(_START_TRIES):
        x, y = float(rng.uniform(0, room.width_m)), float(rng.uniform(0, room.depth_m))
        if room.gap_m(x, y) >= ROBOT_RADIUS_M + _START_GAP_M:
            return Pose(x, y, float(rng.uniform(-math.pi, math.pi)))
    return room.start


def run_episode(arena: Arena, network: Network, suite: SuiteSettings, start: int) -> Episode:
    """Drives for `suite.seconds` from where the robot stands.

    Raises:
        RejectedError: the network answers with what is no number.
    """
    moments: list[Moment] = []
    said: list[tuple[bool, bool, bool]] = []  # free, blocked by geometry; held for blocked
    tally = Tally()
    for moment in drive(arena, network, suite):
        moments.append(moment._replace(frame=moment.frame[:0]))  # pixels would fill the memory
        way = labels.certain_label(arena.room, moment.pose, suite.safety_distance_m)
        said.append((way == "free", way == "blocked", moment.blocked))
        tally.add(moment.time_s, moment.action.motion, suite.latency_ms)
        if len(moments) >= suite.seconds * suite.frames_per_s:
            break
    path = np.array([moment.pose[:2] for moment in moments], np.float32)
    collisions = np.array([moment.collisions for moment in moments])
    free, blocked, stop = np.array(said).T
    distance_m = np.array([moment.distance_m for moment in moments])
    counts = Counts(
        seconds=len(moments) / suite.frames_per_s,
        distance_m=round(float(distance_m[-1]), 6),
        collisions=int(collisions[-1]),
        frames=len(moments),
        stuck=int(standstill(distance_m, round(STANDSTILL_S * suite.frames_per_s)).sum()),
        free=int(free.sum()),
        false_stops=int((free & stop).sum()),
        blocked=int(blocked.sum()),
        missed=int((blocked & ~stop).sum()),
        turning=tally.blocked,
        spins=tally.spins,
    )
    return Episode(arena.seed, start, counts, path, np.repeat(path[1:], np.diff(collisions), axis=0))


def standstill(distance_m: np.ndarray, window: int) -> np.ndarray:
    """(N,) bool: frames in a stretch of `window` frames or more in which the robot gets no further than STANDSTILL_M.

    Args:
        distance_m: (N,) how far the robot has gone, never less than in the frame before.
        window: frames.
    """
    stuck = np.zeros(len(distance_m), bool)
    for begin in np.flatnonzero(distance_m[window:] - distance_m[:-window] < STANDSTILL_M):
        stuck[begin : begin + window + 1] = True
    return stuck


def run_suite(
    model: Path, decision: Decision, suite: SuiteSettings, processes: int, seeds: Sequence[int] | None = None
) -> Iterator[list[Episode]]:
    """Drives a network through the suite; gives the episodes of each room as it is done, in any order.

    Args:
        model: ONNX file.
        decision: threshold and temperature.
        suite: what to drive through.
        processes: rooms at once, each process on one core; with 1, no other process is started.
        seeds: of the rooms; None: the suite's.

    Raises:
        OperatorError: the file cannot be read, or a process was killed.
        RejectedError: the network is no network for a robot.
    """
    Network(model, decision)  # what is wrong with it is told once, here
    seeds = suite.seeds if seeds is None else seeds
    if processes == 1:
        for seed in seeds:
            yield _run_room(model, decision, suite, seed)
        return
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool:
        try:
            running = [pool.submit(_run_room, model, decision, suite, seed) for seed in seeds]
            for done in as_completed(running):
                yield done.result()
        except BrokenProcessPool:
            raise OperatorError("a process of the suite was killed; is there enough memory?") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the pool
    os.environ["OMP_NUM_THREADS"] = "1"


def _run_room(model: Path, decision: Decision, suite: SuiteSettings, seed: int) -> list[Episode]:
    network, room = Network(model, decision), make_room(seed, suite.site)
    return [
        run_episode(start_arena(seed, start, room, suite.site), network, suite, start) for start in range(suite.starts)
    ]


def key(onnx_sha256: str, decision: Decision, suite: SuiteSettings) -> str:
    """Names a drive: equal where network, suite and the code that decides how it goes are the same."""
    total = hashlib.sha256(msgspec.json.encode([onnx_sha256, decision, suite]))
    sources = sorted(Path(simulator.__file__).parent.glob("*.py"))
    for path in sources + [
        Path(str(module.__file__)) for module in (serving.decide, serving.judge, serving.preprocess)
    ]:
        if path.stem not in _SHOWS_ONLY and not path.stem.startswith("fleet"):
            total.update(path.read_bytes())
    return f"{onnx_sha256[:8]}-{total.hexdigest()[:16]}"


def write_counts(episodes: Iterable[Episode]) -> str:
    """As CSV, a line an episode, in order."""
    ordered = sorted(episodes, key=lambda one: (one.seed, one.start))
    rows = [("seed", "start", *Counts._fields), *((one.seed, one.start, *one.counts) for one in ordered)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_counts(text: str) -> list[Episode]:
    """What `write_counts` wrote; the ways driven are not in it.

    Raises:
        RejectedError: it is something else.
    """
    nowhere = np.empty((0, 2), np.float32)
    try:
        rows = list(csv.DictReader(text.splitlines()))
        return [
            Episode(
                int(row["seed"]),
                int(row["start"]),
                Counts(*(kind(row[name]) for name, kind in Counts.__annotations__.items())),
                nowhere,
                nowhere,
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as problem:
        raise RejectedError(
            f"the episodes of a drive cannot be read ({problem}): run `dvc repro -f simulate`"
        ) from None
