"""The robot's loop against one bare inference and against the notebook's loop, in interleaved blocks of one run."""

import threading
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from serving import preprocess
from tests.bench.robot_rig import Rig, export, noise, release_of

_BLOCK_S = 0.5
_FPS = 30.0
_BARE, _BARE_PACED = "bare InferenceSession.run", "bare InferenceSession.run, 30 a second"
_OURS, _PACED = "our loop, frame to motors", "our loop, frame to motors, 30 a second"
_NOTEBOOK = "the notebook's live loop"

# What issue 5 asks for: a figure's name -> (at most or at least, bound).
LIMITS = {
    "median / bare": ("<=", 1.15),
    "p99 / bare": ("<=", 1.5),
    "decisions per s / bare": (">=", 0.9),
    "notebook / median": (">=", 3.0),
}


def measure(folder: Path, backbone: str, threads: int, seconds: float) -> "dict[str, Any]":
    """Runs all blocks in turn for about `seconds`.

    Returns:
        `rows`: name -> milliseconds (median, p99) and count; `per_s`: runs a second; `ratios`; `limits`; `met`.
    """
    model = export(backbone, 0)
    release = release_of(model, folder / "release", "1")
    bare, notebook = _bare(model, threads), _notebook(backbone, threads)
    rig = Rig(folder, threads=threads, max_latency_ms=10_000.0)
    try:
        rig.body.play(_FPS)
        rig.supervisor.activate(release)
        rig.body.playing.clear()
        taken: dict[str, list[float]] = {}
        rates: dict[str, list[float]] = {_BARE: [], _OURS: []}
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            ms, rate = _timed(bare)
            taken.setdefault(_BARE, []).extend(ms)
            rates[_BARE].append(rate)
            taken.setdefault(_OURS, []).extend(_ours(rig, 0.0))
            rates[_OURS].append(_free_running(rig))
            taken.setdefault(_BARE_PACED, []).extend(_timed(bare, _FPS)[0])
            taken.setdefault(_PACED, []).extend(_ours(rig, _FPS))
            taken.setdefault(_NOTEBOOK, []).extend(_timed(notebook)[0])
    finally:
        rig.close()
    return _report(backbone, threads, taken, {name: float(np.median(of)) for name, of in rates.items()})


def _bare(model: bytes, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = noise(1).astype(np.float32)
    return lambda: session.run([preprocess.OUTPUT_NAME], {preprocess.INPUT_NAME: batch})


def _notebook(backbone: str, threads: int) -> Callable[[], object]:
    """One turn of `update` of NVIDIA's notebook collision_avoidance/live_demo, on the CPU: PIL, tensor, eager torch."""
    import torch
    from PIL import Image
    from torch.nn import functional

    from training.model import DEVIATION, MEAN, build_backbone

    torch.set_num_threads(threads)
    network = build_backbone(backbone).eval()
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    frame = noise(1)[0]
    robot: list[tuple[float, float]] = []

    def update() -> None:
        image = Image.fromarray(frame)
        # torchvision.transforms.functional.to_tensor, which a CPU build of torch may be without
        tensor = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
        tensor.sub_(mean[:, None, None]).div_(deviation[:, None, None])
        y = functional.softmax(network(tensor[None, ...]), dim=1)
        prob_blocked = float(y.detach().flatten()[0])
        robot[:] = [(0.4, 0.4) if prob_blocked < 0.5 else (-0.4, 0.4)]

    return update


def _timed(run: Callable[[], object], fps: float = 0.0) -> "tuple[list[float], float]":
    """One block: milliseconds of each run, and runs a second."""
    for _ in range(2):
        run()
    taken_ms: list[float] = []
    begun_s = time.perf_counter()
    while (at_s := time.perf_counter()) - begun_s < _BLOCK_S:
        run()
        taken_ms.append((time.perf_counter() - at_s) * 1e3)
        if fps:
            time.sleep(max(0.0, at_s + 1 / fps - time.perf_counter()))
    return taken_ms, len(taken_ms) / (time.perf_counter() - begun_s)


def _ours(rig: Rig, fps: float) -> "list[float]":
    """One block: milliseconds from having a frame to the motors being set by the guard, one frame after the other."""
    rig.body.play(fps, lockstep=True)
    threading.Event().wait(_BLOCK_S)
    rig.body.playing.clear()
    return [(given.acted_s - given.captured_s) * 1e3 for given in list(rig.body.given)[2:]]


def _free_running(rig: Rig) -> float:
    """One block: decisions a second with a new frame always there."""
    rig.body.play(0.0)
    rig.control.window.take()
    threading.Event().wait(_BLOCK_S)
    taken = rig.control.window.take()
    rig.body.playing.clear()
    return float(taken["decisions_per_s"])


def _report(
    backbone: str, threads: int, taken: "dict[str, list[float]]", per_s: "dict[str, float]"
) -> "dict[str, Any]":
    rows = {
        name: {"median_ms": float(np.median(ms)), "p99_ms": float(np.percentile(ms, 99)), "count": len(ms)}
        for name, ms in taken.items()
    }
    bare, ours = rows[_BARE], rows[_OURS]
    ratios = {
        "median / bare": ours["median_ms"] / bare["median_ms"],
        "p99 / bare": ours["p99_ms"] / bare["p99_ms"],
        "decisions per s / bare": per_s[_OURS] / per_s[_BARE],
        "notebook / median": rows[_NOTEBOOK]["median_ms"] / ours["median_ms"],
        "at 30 fps: median / bare": rows[_PACED]["median_ms"] / rows[_BARE_PACED]["median_ms"],
    }
    met = {
        name: ratios[name] <= bound if sign == "<=" else ratios[name] >= bound for name, (sign, bound) in LIMITS.items()
    }
    return {
        "backbone": backbone,
        "threads": threads,
        "rows": rows,
        "per_s": per_s,
        "ratios": ratios,
        "limits": {name: f"{sign} {bound:g}" for name, (sign, bound) in LIMITS.items()},
        "met": met,
    }
