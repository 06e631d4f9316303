"""`python -m tests.bench.robot`: what issue 5 asks of the robot's loop, measured on this machine.

The measurements are in robot_speed.py, robot_drives.py and robot_chaos.py.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from serving.command_line import run

OUT = Path("build/bench/robot.json")
# As `jetloop-robot run` sets it: serving/daemon.py says why.
_SWITCH_INTERVAL_S = 0.0005
_GROWTH_MB = 0.5  # in a soak, of a process; what a page or two of its allocator may add


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--backbone", default="mobilenet_v3_small", help="Of training.model.Network; its weights are random.")
@click.option("--threads", default=1, help="Of one inference, the same for all.")
@click.option("--seconds", default=40.0, help="Time for the comparison of speeds; 0 leaves it out.")
@click.option("--soak-min", default=0.0, help="Minutes at 30 frames a second, watching memory; the issue asks for 10.")
@click.option("--swaps", default=0, help="Engines changed while driving; the issue asks for 100.")
@click.option("--chaos", default=0, help="kill -9 of a real daemon; the issue asks for 1000. Needs mosquitto.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(backbone: str, threads: int, seconds: float, soak_min: float, swaps: int, chaos: int, out: Path) -> int:
    """Measure the robot's loop: its speed, its swaps, its memory, and its motors when it is killed.

    Speed: one bare InferenceSession.run, our loop through the real supervisor, worker and motor guard, and the live
    loop of NVIDIA's notebook, in interleaved blocks of one run. Writes build/bench/robot.json; exits with 1 when a
    figure is not what the issue asks for.

    Example: python -m tests.bench.robot --seconds 20 --swaps 10
    """
    from rich.console import Console
    from rich.progress import Progress

    from tests.bench import robot_chaos, robot_drives, robot_speed

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    console = Console()
    figures: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    failed: list[str] = []
    # Drawing takes milliseconds of the interpreter that the loop runs in, and none from a bare inference.
    shown = Progress(console=console, transient=True, refresh_per_second=0.5)
    with tempfile.TemporaryDirectory() as temporary, shown as progress:
        folder = Path(temporary)
        if seconds:
            progress.add_task("speed", total=None)
            figures["speed"] = robot_speed.measure(folder / "speed", backbone, threads, seconds)
            failed += [name for name, met in figures["speed"]["met"].items() if not met]
        if swaps:
            task = progress.add_task("swaps", total=swaps)
            done = robot_drives.swaps(folder / "swaps", backbone, swaps, lambda: progress.advance(task))
            figures["swaps"] = done
            failed += ["missed frames"] if done["missed"] else []
            failed += ["longest gap"] if done["longest_gap_frames"] > 2 else []
        if soak_min:
            progress.add_task("soak", total=None)
            figures["soak"] = robot_drives.soak(folder / "soak", backbone, soak_min)
            growth_mb = figures["soak"]["growth_mb"]
            failed += [f"memory of the {name}" for name, grown in growth_mb.items() if grown > _GROWTH_MB]
        if chaos:
            task = progress.add_task("chaos", total=chaos)
            done = robot_chaos.run(folder / "chaos", chaos, lambda: progress.advance(task))
            figures["chaos"] = done
            failed += [name for name in ("over_200_ms", "unbootable", "lost_events") if done[name]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    _show(console, figures)
    console.print(f"{'NOT MET: ' + ', '.join(failed) if failed else 'all met'}; figures in {out}")
    return 1 if failed else 0


def _show(console: Any, figures: "dict[str, Any]") -> None:
    from rich.table import Table

    speed = figures.get("speed")
    if speed:
        table = Table("", "median ms", "p99 ms", "runs", title=f"{speed['backbone']}, {speed['threads']} thread(s)")
        for name, row in speed["rows"].items():
            table.add_row(name, f"{row['median_ms']:.3f}", f"{row['p99_ms']:.3f}", str(row["count"]))
        console.print(table)
        table = Table("ratio", "measured", "asked", "")
        for name, ratio in speed["ratios"].items():
            met = speed["met"].get(name)
            table.add_row(
                name, f"{ratio:.3f}", speed["limits"].get(name, ""), {True: "met", False: "NOT MET"}.get(met, "")
            )
        console.print(table)
    for name in ("swaps", "soak", "chaos"):
        if name in figures:
            console.print(name, figures[name])


if __name__ == "__main__":
    run(command)
