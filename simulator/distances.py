"""How near a network drives up: the same walls and things for several networks, and a figure of where each turns away.

The lab's demonstration: a network trained on images that were sorted at 16 inches (0.41 m) keeps its distance, one
trained on images sorted at 4 inches (0.10 m) drives up close.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.errors import OperatorError
from simulator import labels
from simulator.arena import Arena
from simulator.drive import Network, drive
from simulator.furnish import make_room
from simulator.robot import Drive
from simulator.room import ROBOT_RADIUS_M, Pose, Room
from simulator.settings import FIRST_JUDGING_SEED, LoopSettings

FIRST_SEED = FIRST_JUDGING_SEED + 500_000  # other rooms than those of the suite
AWAY_M = (1.0, 1.3)  # from the robot's front to what it drives at
_HEAD_ON_M = 0.03  # the middle of the robot and its sides meet the thing within so much of each other
_TRIES = 2000
_LONGEST_S = 20.0


class Approach(NamedTuple):
    """One drive at a wall or a thing."""

    seed: int  # of the room
    begun_m: float  # from the front to what it drives at
    turned_m: float  # the same, when the network first held its way for blocked; 0: it hit it


def place_before(room: Room) -> Pose | None:
    """A pose that looks head-on at something `AWAY_M` ahead, with nothing else in the way; None: the room has none."""
    rng = np.random.default_rng([room.seed, 11])
    for _ in range(_TRIES):
        pose = Pose(
            float(rng.uniform(0, room.width_m)),
            float(rng.uniform(0, room.depth_m)),
            float(rng.uniform(-math.pi, math.pi)),
        )
        if room.gap_m(pose.x_m, pose.y_m) < ROBOT_RADIUS_M + 0.1:
            continue
        wide = labels.clearance_m(room, pose)
        middle = labels.clearance_m(room, pose, 0.02 - ROBOT_RADIUS_M)
        if AWAY_M[0] <= wide <= AWAY_M[1] and middle - wide <= _HEAD_ON_M:
            return pose
    return None


def places(count: int) -> list[tuple[Room, Pose]]:
    """So many rooms, with one place to drive from in each."""
    rooms = (make_room(seed) for seed in itertools.count(FIRST_SEED))
    found = ((room, place_before(room)) for room in rooms)
    return list(itertools.islice(((room, pose) for room, pose in found if pose is not None), count))


def approach(room: Room, pose: Pose, network: Network, loop: LoopSettings) -> Approach:
    """Drives from a place until the network holds its way for blocked, or the robot hits what is there.

    Raises:
        RejectedError: the network answers with what is no number.
    """
    arena = Arena(room.seed, room=room, drive=Drive())  # motors that go straight: all come the same way
    arena.place(pose)
    begun_m = arena.clearance_m()
    for moment in drive(arena, network, loop):
        if moment.blocked or moment.collisions or moment.time_s > _LONGEST_S:
            break
    return Approach(room.seed, begun_m, arena.clearance_m() if moment.blocked and not moment.collisions else 0.0)


def compare(networks: Sequence[Network], count: int, loop: LoopSettings) -> Iterator[tuple[int, Approach]]:
    """Every network at every place, place by place: the network's number and what it did."""
    for room, pose in places(count):
        for number, network in enumerate(networks):
            yield number, approach(room, pose, network, loop)


def told(name: str, approaches: Sequence[Approach]) -> str:
    """The outcome of one network in a line."""
    turned = np.array([one.turned_m for one in approaches])
    low, middle, high = np.quantile(turned, (0.25, 0.5, 0.75))
    return (
        f"{name}: turns away at {middle:.2f} m (half of the time at {low:.2f} to {high:.2f} m), "
        f"hits {np.count_nonzero(turned == 0)} of {len(turned)}"
    )


def draw(names: Sequence[str], approaches: Sequence[Sequence[Approach]], out: Path) -> None:
    """Writes the figure, a PNG: for each network where it turned away, a dot a drive.

    Raises:
        OperatorError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.2 + 1.2 * len(names)), layout="constrained")
    rng = np.random.default_rng(0)
    turned = [[one.turned_m for one in drives] for drives in approaches]
    axes.boxplot(turned, orientation="horizontal", widths=0.45, showfliers=False, medianprops={"linewidth": 2.5})
    for row, (name, distances) in enumerate(zip(names, turned, strict=True), start=1):
        axes.scatter(distances, row + rng.uniform(-0.12, 0.12, len(distances)), s=18, alpha=0.6, zorder=3)
        axes.text(0.0, row - 0.3, f"{name}: {np.median(distances):.2f} m", va="bottom", weight="bold")
    axes.set_yticks([])
    axes.set_ylim(len(names) + 0.4, 0.4)  # the first on top
    axes.set_xlim(-0.04, AWAY_M[1] + 0.05)
    axes.set_xlabel("metres to what it drives at, when it turns away; 0: it hit it (box: middle half, line: median)")
    axes.grid(axis="x", alpha=0.3)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120)
    except OSError as problem:
        raise OperatorError(f"cannot write {out}: {problem.strerror or problem}; choose another with --out") from None
    finally:
        plt.close(figure)
