"""Stage `export`: the trained network as ONNX, and golden frames that every engine made of it must answer alike.

    reads   params.yaml (export, data.sessions), build/train/model.pt and run.json, build/evaluate/decision.json,
            build/split/split.csv, the session zips
    writes  build/export/model.onnx    opset 13, batch 1, static shapes, preprocessing inside
            build/export/golden.npz    frames (N, 224, 224, 3) uint8 and the logits (N, 2) float32 that torch gave
            build/export/export.json   contract `ExportReport`
            build/export/int8/         report.json and, where export.int8 asks and it is as accurate, model.int8.onnx

Opset 13 is the newest that TensorRT 8.2 reads (Jetson Nano, JetPack 4.6). The same network gives the same bytes, so
that its digest names it.
"""

import hashlib
import inspect
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from pipelines import decision_file, int8
from pipelines.images_table import write_text
from pipelines.onnx_run import logits_of_onnx
from pipelines.params import DataParams, ExportParams, block
from serving import preprocess
from serving.command_line import run
from serving.contracts.releases import Decision, ExportReport
from serving.contracts.sessions import LABELS
from serving.errors import RejectedError
from training.dataset import Row, load, read_split
from training.tracking import Run

MODEL_FILE = Path("build/train/model.pt")
SPLIT_FILE = Path("build/split/split.csv")
EVALUATED = Path("build/evaluate")
OUT = Path("build/export")
OPSET = 13
INT32 = np.iinfo(np.int32)
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def to_onnx(network: Any) -> bytes:
    """The network as an ONNX file.

    Args:
        network: a `training.model.Network`, on the CPU.

    Raises:
        RejectedError: the graph holds what TensorRT 8.2 cannot take.
    """
    import io

    import onnx
    import torch

    file: Any = io.BytesIO()  # newer annotations leave out that a file object will do
    # torch 2.1 has the TorchScript exporter alone; later ones must be asked for it, the other begins at opset 18.
    legacy: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says at each call that it is the older one
        torch.onnx.export(
            network.eval(),
            (torch.zeros(preprocess.INPUT_SHAPE),),
            file,
            opset_version=OPSET,
            input_names=[preprocess.INPUT_NAME],
            output_names=[preprocess.OUTPUT_NAME],
            **legacy,
        )
    model = onnx.load_from_string(file.getvalue())
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    refuse_wide_integers(model)
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: Any) -> None:
    """Removes what depends on where and when the file was made, and not on the network."""
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")


def refuse_wide_integers(model: Any) -> None:
    """TensorRT 8.2 narrows INT64 to INT32 and must not lose anything by it.

    Raises:
        RejectedError: a constant is outside of INT32.
    """
    from onnx import TensorProto, numpy_helper

    constants = list(model.graph.initializer)
    constants += [
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
    ]
    for tensor in constants:
        if tensor.data_type != TensorProto.INT64:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size and (values.min() < INT32.min or values.max() > INT32.max):
            raise RejectedError(f"the ONNX constant `{tensor.name}` is outside of INT32, which TensorRT 8.2 needs")


def choose_golden(rows: list[Row], count: int) -> list[Row]:
    """`count` images of the test part: as many of each class, spread evenly over the sessions.

    Raises:
        RejectedError: the part has fewer of a class.
    """
    chosen: list[Row] = []
    for index, label in enumerate(LABELS):
        wanted = count // 2 + (count % 2 if index == 0 else 0)
        having = sorted(row for row in rows if row.label == label)
        if len(having) < wanted:
            raise RejectedError(
                f"the test part has {len(having)} images of `{label}`, and export.golden_frames asks for {wanted}; "
                "lower it or collect more images"
            )
        chosen += [having[at] for at in np.linspace(0, len(having) - 1, wanted).round().astype(int)]
    return chosen


def golden_file(frames: np.ndarray, logits: np.ndarray) -> bytes:
    """An .npz whose bytes depend on its content alone; `numpy.savez` would write the time into it."""
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("frames", frames), ("logits", logits)):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME), content.getvalue())
    return file.getvalue()


def logits_of_torch(network: Any, frames: np.ndarray) -> np.ndarray:
    """(N, 2) float32, one frame at a time as on the robot."""
    import torch

    with torch.no_grad():
        answers = [network(torch.from_numpy(frame[None].astype(np.float32))).numpy()[0] for frame in frames]
    return np.asarray(answers, dtype=np.float32)


def export(network: Any, frames: np.ndarray, decision: Decision, out: Path) -> ExportReport:
    """Writes the three files and says what they are.

    Raises:
        RejectedError: the graph does not fit the targets.
    """
    model = to_onnx(network)
    logits = logits_of_torch(network, frames)
    golden = golden_file(frames, logits)
    report = ExportReport(
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        onnx_bytes=len(model),
        opset=OPSET,
        preprocessing=preprocess.PREPROCESSING,
        backbone=network.name,
        parity_max_abs=float(np.abs(logits_of_onnx(model, frames) - logits).max()),
        golden_sha256=hashlib.sha256(golden).hexdigest(),
        golden_count=len(frames),
        decision=decision,
    )
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "model.onnx", model)
    _write(out / "golden.npz", golden)
    write_text(out / "export.json", json.dumps(msgspec.to_builtins(report), indent=2) + "\n")
    return report


def export_int8(read: Callable[[], int8.Material], asked: int8.Asked, out: Path) -> int8.Int8Report:
    """Writes the folder int8 beside the model.onnx that `export` wrote.

    Raises:
        RejectedError: int8 must be had and is not as accurate.
    """
    quantised, report = int8.make((out / "model.onnx").read_bytes(), read, asked)
    folder = out / "int8"
    folder.mkdir(exist_ok=True)
    if quantised is None:
        (folder / "model.int8.onnx").unlink(missing_ok=True)
    else:
        _write(folder / "model.int8.onnx", quantised)
    write_text(folder / "report.json", json.dumps(msgspec.to_builtins(report), indent=2) + "\n")
    return report


def _write(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    os.replace(draft, path)


@click.command()
def command() -> None:
    """Stage `export`: write the trained network as ONNX, in int8 too, with golden frames from the test part.

    \b
    Example:
      dvc repro export
    """
    from training.model import restore

    params, sessions = block(ExportParams), Path(block(DataParams).sessions)
    parts = read_split(SPLIT_FILE)
    chosen = choose_golden(parts["test"], params.golden_frames)
    decision = decision_file.read(EVALUATED)
    with Run.resume() as tracked:
        network = restore(MODEL_FILE)
        frames = np.asarray(load(chosen, sessions, "reading golden frames").pixels)
        report = export(network, frames, decision, OUT)

        def read() -> int8.Material:
            seen = load(int8.spread(parts["train"], int8.CALIBRATION_IMAGES), sessions, "reading images for int8")
            judged = load(int8.spread(parts["validation"], int8.VALIDATION_IMAGES), sessions, "reading validation")
            logits = logits_of_torch(network, frames)
            return int8.Material(np.asarray(seen.pixels), judged, frames, logits, decision)

        quantised = export_int8(read, params.int8, OUT)
        for name in ("model.onnx", "golden.npz", "export.json"):
            tracked.artifact(OUT / name, "export")
        for path in sorted((OUT / "int8").iterdir()):
            tracked.artifact(path, "export/int8")
        tracked.metrics({"export/parity_max_abs": report.parity_max_abs, "export/onnx_mb": report.onnx_bytes / 1e6})
    click.echo(
        f"model.onnx: {report.onnx_bytes / 1e6:.1f} MB, sha256 {report.onnx_sha256[:12]}…, "
        f"differs from torch by {report.parity_max_abs:.1e} at most"
    )
    click.echo(f"int8: {'kept' if quantised.kept else 'not kept'}, {quantised.reason}")


if __name__ == "__main__":
    run(command)
