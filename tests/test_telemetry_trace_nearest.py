"""From a frame to the training images nearest to it: the index, the search, and the command, with a real MLflow."""

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import nearest as indexing
from serving.errors import OperatorError, RejectedError
from serving.preprocess import FRAME_SHAPE
from telemetry import nearest
from telemetry.store import Batch, open_store
from tests.test_telemetry_samples import decision, event, passport, release_service
from tests.test_telemetry_trace import _run

SESSIONS = Path("data/sample")


@pytest.fixture(scope="module")
def model() -> bytes:
    """A network of random weights, as ONNX."""
    import torch

    from pipelines.export import to_onnx
    from training.model import Network

    torch.manual_seed(0)
    return to_onnx(Network("mobilenet_v3_small", 112))


def _split(tmp_path: Path) -> tuple[Path, list[str]]:
    """A split whose part `train` is 12 images of the sample."""
    from training.frames import list_images

    images = list_images(SESSIONS).images[::10][:12]
    lines = ["image,label,session,source,group,part,simulated"]
    lines += [f"{one},{one.split('/')[1]},{one.split('/')[0]},s,{at},train,False" for at, one in enumerate(images)]
    path = tmp_path / "split.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, images


def _frame_of(image: str) -> bytes:
    from training.frames import decode, open_session

    with open_session(SESSIONS / f"{image.partition('/')[0]}.zip") as archive:
        pixels = decode(archive, image)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_training_image_finds_itself(model: bytes, tmp_path: Path) -> None:
    """Given one of the images the index answers that image first, whole after writing and reading it."""
    split, images = _split(tmp_path)
    made = indexing.make_index(model, SESSIONS, split)
    nearest.write(made, tmp_path / nearest.FILE)
    index = nearest.read(tmp_path / nearest.FILE)
    assert sorted(index.images) == sorted(images)
    assert index.trained == 12
    for image in images[:3]:
        found = nearest.find(index, model, nearest.read_frame(_frame_of(image)), 3)
        assert found[0].image == image
        assert found[0].likeness == pytest.approx(1.0, abs=2e-3)
        assert Image.open(io.BytesIO(found[0].thumbnail)).size == (nearest.THUMBNAIL, nearest.THUMBNAIL)
    other = nearest.Index(**{**vars(index), "features": index.features[:, :7]})
    with pytest.raises(RejectedError, match="of another network"):
        nearest.find(other, model, np.zeros(FRAME_SHAPE, np.uint8), 3)


@given(st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_what_is_no_picture_and_no_index_is_refused(data: bytes) -> None:
    """Any bytes in place of a frame or an index are refused in one line."""
    with pytest.raises(RejectedError):
        nearest.read_frame(data)
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with pytest.raises(RejectedError):
            nearest.read(Path(file.name))


def test_the_command_tells_the_nearest_images(
    model: bytes, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trace --frame` names the images and what gets each back; a run without an index says what adds it."""
    import hashlib

    from mlflow import MlflowClient

    from training.tracking import Run, RunFile

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    client = MlflowClient(mlflow_server)
    experiment = client.create_experiment(f"nearest-{tmp_path.name}")
    run, empty = (client.create_run(experiment).info.run_id for _ in range(2))
    split, images = _split(tmp_path)
    (tmp_path / "model.onnx").write_bytes(model)
    client.log_artifact(run, str(tmp_path / "model.onnx"), "export")
    tracked = Run(client, RunFile(run_id=run, tracking_uri=mlflow_server, experiment="e"))
    assert indexing.add_index(tracked, tmp_path / "model.onnx", SESSIONS, split) == 12
    assert indexing.add_index(tracked, tmp_path / "model.onnx", SESSIONS, split) == 0  # it is there already
    name = f"nearest-{tmp_path.name}"
    client.create_registered_model(name)

    def entry(run_id: str) -> dict[str, Any]:
        version = client.create_model_version(name, f"runs:/{run_id}/model", run_id).version
        changes = {"model_name": name, "model_version": str(version), "onnx_sha256": hashlib.sha256(model).hexdigest()}
        lineage = msgspec.structs.replace(passport(run_id=run_id).lineage, **changes)
        return decision({"cpu-ort-fp32": msgspec.structs.replace(passport(), lineage=lineage)})

    url, one = f"sqlite:///{tmp_path / 'events.db'}", event()
    open_store(url).add(Batch(events=[one]))
    frame = tmp_path / "frame.png"
    frame.write_bytes(_frame_of(images[4]))
    with release_service([entry(run)]) as service:
        arguments = (one.id, "--store", url, "--releases", service, "--frame", str(frame))
        text, problem = _run(*arguments, "--mlflow", mlflow_server)
        _, without = _run(*arguments)
    with release_service([entry(empty)]) as service:
        arguments = (one.id, "--store", url, "--releases", service, "--frame", str(frame), "--mlflow", mlflow_server)
        shown, missing = _run(*arguments)
    assert problem is None
    lines = [line for line in text.splitlines() if line.startswith("nearest")]
    assert len(lines) == 5
    assert images[4] in lines[0]
    session, name_in_zip = images[4].split("/", 1)
    assert f"dvc get . data/sample/{session}.zip --rev {'4bb1f0c2' * 5}" in text
    assert f"unzip -o {session}.zip '{name_in_zip}'" in text
    assert isinstance(without, OperatorError)
    assert "\ncommit" in shown
    assert "dvc repro -f register" in str(missing)
