"""`python -m tests.bench.networks`: what each network costs: parameters, size, and time on a CPU in fp32 and in int8.

What each is worth, its accuracy in rooms that it has not seen, is measured by another command; docs/training.md has
both. The weights are random here, which changes neither size nor time.
"""

import json
import os
from pathlib import Path
from typing import Any

import click

from serving.command_line import run

OUT = Path("build/bench/networks.json")
_FEW_FRAMES = 4  # for the ranges of int8, which do not change its time


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rounds", default=200, help="Inferences of each network in each precision, fp32 and int8 in turns.")
@click.option("--backbone", "backbones", multiple=True, help="Only this one; may be given again.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(rounds: int, backbones: "tuple[str, ...]", out: Path) -> None:
    """Measure every network at 224 and 112: parameters, ONNX size, latency p50 and p99 on one CPU thread.

    Reads nothing; writes build/bench/networks.json. Let nothing else run meanwhile.

    Example: python -m tests.bench.networks --rounds 50 --backbone resnet18
    """
    from rich.console import Console
    from rich.progress import track

    from training.model import BACKBONES

    console = Console()
    cases = [(backbone, resolution) for backbone in backbones or BACKBONES for resolution in (224, 112)]
    rows = [measure(*case, rounds) for case in track(cases, "networks", console=console, transient=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"cores": os.cpu_count(), "rounds": rounds, "networks": rows}, indent=2) + "\n")
    _show(console, rows)
    console.print(f"figures in {out}")


def measure(backbone: str, resolution: int, rounds: int) -> "dict[str, Any]":
    """One network at one resolution."""
    import numpy as np
    import torch

    from pipelines.export import to_onnx
    from pipelines.onnx_run import latencies_ms
    from pipelines.quantize import for_cpu, quantise
    from serving.preprocess import FRAME_SHAPE
    from training.model import Network

    torch.manual_seed(0)
    network = Network(backbone, resolution).eval()
    frames = np.random.default_rng(0).integers(0, 256, (_FEW_FRAMES, *FRAME_SHAPE), dtype=np.uint8)
    fp32 = to_onnx(network)
    int8 = quantise(fp32, frames)[0]
    taken_ms = latencies_ms([fp32, for_cpu(int8)], rounds)
    row: dict[str, Any] = {"backbone": backbone, "resolution": resolution}
    row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    for name, model, ms in zip(("fp32", "int8"), (fp32, int8), taken_ms, strict=True):
        row[name] = {
            "onnx_bytes": len(model),
            "p50_ms": float(np.percentile(ms, 50)),
            "p99_ms": float(np.percentile(ms, 99)),
        }
    return row


def _show(console: Any, rows: "list[dict[str, Any]]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="one CPU thread, fp32 and int8 in turns; ms: p50 / p99", box=SIMPLE_HEAD)
    table.add_column("network", no_wrap=True)
    table.add_column("side")
    for column in ("M params", "fp32 MB", "fp32 ms", "int8 MB", "int8 ms"):
        table.add_column(column, justify="right", no_wrap=column.endswith("ms"))
    for row in rows:
        cells = [row["backbone"], str(row["resolution"]), f"{row['parameters'] / 1e6:.2f}"]
        for precision in ("fp32", "int8"):
            found = row[precision]
            cells += [f"{found['onnx_bytes'] / 1e6:.1f}", f"{found['p50_ms']:.1f} / {found['p99_ms']:.1f}"]
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    run(command)
