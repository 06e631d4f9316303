"""Long drives at 30 frames a second: engines that change under way, and memory that must not grow."""

import csv
import gc
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import psutil

from tests.bench.robot_rig import Rig, export, release_of

FPS = 30.0
_SAMPLE_EVERY_S = 5.0
_TRACED_FRAMES = 90


def swaps(folder: Path, backbone: str, count: int, tick: Callable[[], None] = lambda: None) -> "dict[str, Any]":
    """Changes between two engines `count` times while driving.

    Returns:
        Frames that came, were decided on and were missed; the longest gap between two decisions in frames.
    """
    releases = [release_of(export(backbone, seed), folder / f"release{seed}", str(seed + 1)) for seed in range(2)]
    rig = Rig(folder, max_latency_ms=10_000.0)
    try:
        rig.body.play(FPS)
        rig.supervisor.activate(releases[0])
        for number in range(count):
            rig.supervisor.activate(releases[(number + 1) % 2])
            tick()
    finally:
        rig.close()
    told = rig.heard.of("model.activated")
    with rig.decisions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    captured_s = np.array([float(row["captured_unix_s"]) for row in rows])
    acted_s = captured_s + np.array([float(row["age_ms"]) for row in rows]) / 1e3
    frames = round((captured_s[-1] - captured_s[0]) * FPS) + 1
    return {
        "swaps": len(told) - 1,
        "frames": frames,
        "decisions": len(rows),
        "missed": frames - len(rows),
        "longest_gap_frames": float(np.diff(acted_s).max() * FPS),
        "stale_frames": sum(event["count"] for event in rig.heard.of("frame.stale")),
        "engines": len({row["engine"] for row in rows}),
    }


def soak(folder: Path, backbone: str, minutes: float, tick: Callable[[], None] = lambda: None) -> "dict[str, Any]":
    """Drives on and on.

    Returns:
        `rss_mb`: of daemon (this process), worker and guard, at the start (after a tenth of the time) and at the end;
        `allocations`: what Python held more after _TRACED_FRAMES frames, and the largest it held in between.
    """
    release = release_of(export(backbone, 0), folder / "release", "1")
    rig = Rig(folder, max_latency_ms=10_000.0)
    samples: List[dict[str, float]] = []
    try:
        rig.body.play(FPS)
        rig.supervisor.activate(release)
        deadline_s = time.monotonic() + minutes * 60
        while time.monotonic() < deadline_s:
            time.sleep(min(_SAMPLE_EVERY_S, minutes * 6))
            rig.control.window.take()  # as the daemon does for its metrics
            samples.append(_rss_mb(rig))
            tick()
        allocated = _allocations(rig)
        frames = rig.body.due
    finally:
        rig.close()
    first, last = samples[len(samples) // 10], samples[-1]
    return {
        "minutes": minutes,
        "frames": frames,
        "rss_mb": {name: [round(first[name], 2), round(last[name], 2)] for name in first},
        "growth_mb": {name: round(last[name] - first[name], 2) for name in first},
        "allocations": allocated,
    }


def _rss_mb(rig: Rig) -> "dict[str, float]":
    running, guard = rig.supervisor._running, rig.guard
    assert running is not None
    assert guard is not None
    processes = {"daemon": os.getpid(), "worker": running.engine.pid, "guard": guard.pid}
    return {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in processes.items()}


def _allocations(rig: Rig) -> "dict[str, float]":
    """Bytes that Python's allocator holds more after some frames, and at its highest in between, per frame."""
    tracemalloc.start()
    try:
        time.sleep(0.5)
        rig.control.window.take()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        begun = rig.body.due
        while rig.body.due - begun < _TRACED_FRAMES:
            time.sleep(0.05)
        rig.control.window.take()
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"held_bytes_per_frame": (after - before) / _TRACED_FRAMES, "peak_bytes": float(peak - before)}
