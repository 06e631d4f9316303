"""`python -m tests.bench.scale`: time and memory of the stages that read every image, from 1,000 to 100,000 images.

For each size, in a project folder of its own with git and DVC: the stages `validate` and `split`, and making the pack
that `train` begins with, each as the process that `dvc repro` starts; then a `dvc repro` that finds nothing to do.
Training itself is not run. So that DVC has something to compare, the outputs of the later stages are stand-ins, and
`dvc commit` writes them down: what a no-op `dvc repro` looks at is the same as after a real one.

The images are simulated; scale_sessions.py says how so many are made in minutes.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import psutil
from ruamel.yaml import YAML

from serving.command_line import run
from serving.errors import OperatorError
from tests.bench import scale_sessions
from tests.conftest import ROOT

OUT = Path("build/bench/scale.json")
_SAMPLE_S = 0.02
_NO_OPS = 3
_CODE = ("pipelines", "training", "serving", "simulator", "telemetry")
_FILES = ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "data/labels.csv", "data/schema.yaml", ".dvc/config")
# As `train` does it: the rows of the split, their pixels checked against the pack's checksums.
_PACK = """
from pathlib import Path
from training.dataset import load, read_split
rows = [row for part in read_split(Path("build/split/split.csv")).values() for row in part]
images = load(rows, Path("data/sessions"), "packing")
assert images.pixels.shape == (len(rows), 224, 224, 3)
"""
# What issue 3 asks for at 100,000 images.
LIMITS = {"validate and pack, s": 360.0, "peak memory, GB": 2.0, "no-op repro / the smallest": 2.0}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--images", default="1000,10000,100000", help="Sizes, smallest first.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the projects are made, and removed again; 100,000 images take 18 GB.  [default: build/bench]",
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(images: str, folder: Path | None, out: Path) -> int:
    """Measure validate, split, pack and a no-op `dvc repro` as the number of images grows.

    Writes build/bench/scale.json; exits with 1 when a figure is not what the issue asks for.

    \b
    Example:
      python -m tests.bench.scale --images 1000,10000
    """
    from rich.console import Console

    console = Console()
    try:
        sizes = [int(size) for size in images.split(",")]
    except ValueError:
        raise OperatorError(f"--images {images}: give numbers with commas between, such as 1000,10000") from None
    folder = folder or out.parent
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was made is removed
    measured = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=folder) as project:
            try:
                measured.append(measure(Path(project), size, console))
            except BaseException:
                _end_children()
                raise
    figures = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "sizes": measured,
        "summary": summary(measured),
        "limits": LIMITS,
    }
    failed = [name for name, bound in LIMITS.items() if figures["summary"][name] > bound]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    _show(console, measured, figures["summary"])
    console.print(f"{'NOT MET: ' + '; '.join(failed) if failed else 'all met'}; figures in {out}")
    return 1 if failed else 0


def measure(project: Path, size: int, console: Any) -> dict[str, Any]:
    """All steps at one size.

    Returns:
        `images`, `sessions`, `gigabytes` of zips, `no_op_s`, and a step's `s` and `peak_gb` under its name.
    """
    with console.status(f"{size} images: making them"):
        begun = time.monotonic()
        _project(project)
        made = scale_sessions.make(project / "data/sessions", size)
        found: dict[str, Any] = {"images": made, **scale_sessions.describe(project / "data/sessions")}
        found["made_s"] = round(time.monotonic() - begun, 1)
    steps = {
        "validate": ("-m", "pipelines.validate"),
        "split": ("-m", "pipelines.split"),
        "pack": ("-c", _PACK),
        "pack again": ("-c", _PACK),
    }
    for name, arguments in steps.items():
        with console.status(f"{size} images: {name}"):
            found[name] = _measured(project, arguments)
    with console.status(f"{size} images: dvc"):
        _record(project)
        found["no_op_s"] = round(statistics.median(_no_op(project) for _ in range(_NO_OPS)), 2)
    return found


def summary(measured: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of LIMITS: of the largest size, and against the smallest."""
    smallest, largest = measured[0], measured[-1]
    return {
        "validate and pack, s": round(largest["validate"]["s"] + largest["pack"]["s"], 1),
        "peak memory, GB": max(largest[name]["peak_gb"] for name in ("validate", "split", "pack", "pack again")),
        "no-op repro / the smallest": round(largest["no_op_s"] / smallest["no_op_s"], 2),
    }


def _project(folder: Path) -> None:
    for name in _CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    yaml, params = YAML(), folder / "params.yaml"
    changed = yaml.load(params)
    changed["data"]["sessions"] = "data/sessions"
    yaml.dump(changed, params)
    _run(folder, "git", "init", "-q")


def _record(project: Path) -> None:
    """Makes DVC believe that every stage has run."""
    stages = YAML(typ="safe").load(project / "dvc.yaml")["stages"]
    for stage in stages.values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path = project / (out if isinstance(out, str) else next(iter(out)))
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}\n")  # a stand-in
    _run(project, sys.executable, "-m", "dvc", "add", "data/sessions")
    _run(project, sys.executable, "-m", "dvc", "commit", "-f")


def _no_op(project: Path) -> float:
    begun = time.monotonic()
    said = _run(project, sys.executable, "-m", "dvc", "repro")
    taken = time.monotonic() - begun
    if "Data and pipelines are up to date" not in said:
        raise OperatorError(f"dvc repro found something to do: {' '.join(said.split())[:300]}")
    return taken


def _measured(project: Path, arguments: tuple[str, ...]) -> dict[str, float]:
    """Runs Python and watches the memory of all its processes: added up, what they share counted in each."""
    peak, ended = 0, threading.Event()
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=project, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def watch() -> None:
        nonlocal peak
        parent = psutil.Process(process.pid)
        while not ended.wait(_SAMPLE_S):
            peak = max(peak, _resident(parent))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said = process.communicate()[0].decode(errors="replace")
    taken = time.monotonic() - begun
    ended.set()
    watcher.join()
    if process.returncode:
        raise OperatorError(f"{' '.join(arguments[:2])} ended with {process.returncode}: {said[-800:]}")
    return {"s": round(taken, 2), "peak_gb": round(peak / 1e9, 3)}


def _end_children() -> None:
    """Ends every process that is still at work in a project, and waits, so that none writes while it is removed."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=10)


def _resident(parent: psutil.Process) -> int:
    total = 0
    try:
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # ended while it was asked
        return 0
    return total


def _run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(arguments, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperatorError(f"{' '.join(arguments)} failed: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": "."}


def _show(console: Any, measured: list[dict[str, Any]], found: dict[str, float]) -> None:
    from rich.table import Table

    steps = ("validate", "split", "pack", "pack again")
    table = Table("images", "zips GB", *steps, "no-op repro", "peak GB", title="seconds that each step takes")
    for one in measured:
        peak = max(one[step]["peak_gb"] for step in steps)
        seconds = (f"{one[step]['s']:.1f}" for step in steps)
        table.add_row(f"{one['images']:,}", f"{one['gigabytes']:.2f}", *seconds, f"{one['no_op_s']:.2f}", f"{peak:.2f}")
    console.print(table)
    table = Table("figure", "measured", "at most")
    for name, value in found.items():
        table.add_row(name, f"{value:g}", f"{LIMITS[name]:g}")
    console.print(table)


if __name__ == "__main__":
    run(command)
