"""`python -m tests.bench.simulator`: how many frames a second the arena's camera gives on one core, everything on; and
how long the closed loop takes for a suite of 50 rooms of a minute each.

Rooms, cameras and poses are those of sessions: textures, shadows, smear, noise, every lens. Baking a room's looks is
timed apart. The suite is driven by MobileNetV3-small at 224 pixels with random weights, unless a model is given; what
it says changes the way, not the time. Writes build/bench/simulator.json.
"""

import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from serving.files import write_atomic
from simulator.arena import Arena
from simulator.drive import read_decision
from simulator.settings import SuiteSettings
from simulator.suite import run_suite
from training.progress import track

ROUNDS = 5  # the fastest round of each room counts: what else the machine does only ever slows one down


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rooms", type=click.IntRange(1, 200), default=12, help="Rooms, each with a camera of its own.")
@click.option("--frames", type=click.IntRange(1, 1000), default=40, help="Frames in each round of a room.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Of the first room; the next take those that follow.")
@click.option("--suite-rooms", type=click.IntRange(0, 1000), default=50, help="A minute of driving each; 0: no suite.")
@click.option("--processes", type=click.IntRange(1, 64), default=2, help="Of the suite.")
@click.option("--model", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="ONNX file for the suite.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="build/bench/simulator.json",
    help="JSON to write.",
)
def main(rooms: int, frames: int, seed: int, suite_rooms: int, processes: int, model: Path | None, out: Path) -> None:
    """Measure the camera's frames a second on one core and the time of a suite, and print and write them.

    \b
    Example: python -m tests.bench.simulator --rooms 12 --frames 40
    """
    found = [_room(number, frames) for number in range(seed, seed + rooms)]
    per_frame_s = statistics.mean(frame_s for _, frame_s in found)
    report: dict[str, object] = {
        "frames_per_s": round(1 / per_frame_s, 1),
        "slowest_room_frames_per_s": round(1 / max(frame_s for _, frame_s in found), 1),
        "frame_ms": round(1e3 * per_frame_s, 3),
        "room_ms": round(1e3 * statistics.mean(room_s for room_s, _ in found), 1),
        "rooms": rooms,
        "frames": frames * ROUNDS * rooms,
        "resolution": [224, 224],
        "cores": 1,
    }
    if suite_rooms:
        report["suite"] = _suite(suite_rooms, processes, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(report, indent=2) + "\n").encode())
    click.echo(
        f"{report['frames_per_s']} frames/s ({report['frame_ms']} ms each), {report['room_ms']} ms a room: {out}"
    )
    if suite_rooms:
        click.echo(
            "suite of {rooms} rooms, {driven_s:.0f} s of driving: {took_s} s in {processes} processes, "
            "{frames_per_s} frames/s".format(**report["suite"])
        )  # type: ignore[arg-type]


def _suite(rooms: int, processes: int, model: Path | None) -> dict[str, object]:
    """Wall-clock time of a suite, from the start of the processes to the last episode."""
    suite = SuiteSettings(rooms=rooms, starts=4, seconds=15)
    with TemporaryDirectory() as folder:
        driven_by = model if model is not None else _random_network(Path(folder) / "model.onnx")
        start = time.perf_counter()
        driven = run_suite(driven_by, read_decision(driven_by), suite, processes)
        frames = sum(one.counts.frames for room in track(driven, "suite", rooms) for one in room)
        took_s = time.perf_counter() - start
    return {
        "rooms": rooms,
        "driven_s": suite.driven_s,
        "processes": processes,
        "took_s": round(took_s, 1),
        "frames_per_s": round(frames / took_s, 1),
    }


def _random_network(path: Path) -> Path:
    import torch

    from pipelines.export import to_onnx
    from training.model import Network

    torch.manual_seed(0)
    path.write_bytes(to_onnx(Network("mobilenet_v3_small", 224).eval()))
    return path


def _room(seed: int, frames: int) -> tuple[float, float]:
    """Seconds of processor time to make a room with its looks, and for a frame in it."""
    start = time.thread_time()
    arena = Arena(seed)
    arena.render()
    room_s = time.thread_time() - start
    fastest = min(_round(arena, frames) for _ in range(ROUNDS))
    return room_s, fastest / frames


def _round(arena: Arena, frames: int) -> float:
    """Processor time of a drive that turns all the while; the motion itself is not counted."""
    took = 0.0
    for _ in range(frames):
        arena.step(0.3, 0.1, 0.05)
        start = time.thread_time()
        arena.render()
        took += time.thread_time() - start
    return took


if __name__ == "__main__":
    main()
