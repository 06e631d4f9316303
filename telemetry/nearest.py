"""The training images that a network finds most like a frame: the index, and the search in it.

Like means: the cosine between what the network's last layer works on (its features), of the frame and of each image.
The features come out of the same model.onnx whose digest the passport names, for the index and for the frame alike.
The index is made by the stage register (pipelines/nearest.py) and lies in the MLflow run, as `nearest/nearest.npz`:

    images      (N,) text             <session>/<label folder>/<file>
    features    (N, D) float16        of length 1
    thumbnails  (sum of lengths,) uint8, lengths (N,) int32    JPEGs, 64 pixels wide, one after the other
    trained     ()                    images that the network was trained on; at most MAX_IMAGES are in the index
    sessions    () text               folder of the session zips in the repository
    onnx_sha256 () text
"""

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving import preprocess
from serving.contracts.releases import Lineage
from serving.errors import OperatorError, RejectedError, first_line

FOLDER, FILE = "nearest", "nearest.npz"  # in the run's artifacts
MODEL = "export/model.onnx"
MAX_IMAGES = 2_000  # in an index: 4 MB of features and as much of thumbnails
THUMBNAIL = 64  # pixels
_MAX_PIXELS = 50_000_000  # of a frame that somebody gives


@dataclass(frozen=True)
class Index:
    """The file above, in memory."""

    images: Sequence[str]
    features: np.ndarray  # (N, D) float32
    thumbnails: Sequence[bytes]
    trained: int
    sessions: str
    onnx_sha256: str


@dataclass(frozen=True)
class Found:
    image: str
    likeness: float  # cosine, -1..1
    thumbnail: bytes  # JPEG


def features(model: bytes, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """(D,) float32 of length 1 for each frame: what goes into the network's last matrix product.

    Args:
        model: the ONNX file.
        frames: (224, 224, 3) uint8, RGB.

    Raises:
        RejectedError: the network ends with no matrix product.
    """
    import onnx
    import onnxruntime

    graph = onnx.load_from_string(model)
    last = next((node for node in reversed(graph.graph.node) if node.op_type in ("Gemm", "MatMul")), None)
    if last is None:
        raise RejectedError("this network has no last layer with features; nearest images cannot be told")
    graph.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = np.empty(preprocess.INPUT_SHAPE, dtype=np.float32)
    for frame in frames:
        preprocess.into(frame, batch)
        vector = session.run([last.input[0]], {preprocess.INPUT_NAME: batch})[0].reshape(-1).astype(np.float32)
        yield vector / max(float(np.linalg.norm(vector)), 1e-9)


def thumbnail(frame: np.ndarray) -> bytes:
    """A small JPEG of a frame."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR).save(out, "JPEG", quality=80)
    return out.getvalue()


def write(index: Index, path: Path) -> None:
    """Writes the file in one step."""
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.savez_compressed(
            file,
            images=np.array(index.images, dtype=np.str_),
            features=index.features.astype(np.float16),
            thumbnails=np.frombuffer(b"".join(index.thumbnails), dtype=np.uint8),
            lengths=np.array([len(one) for one in index.thumbnails], dtype=np.int32),
            trained=np.array(index.trained),
            sessions=np.array(index.sessions),
            onnx_sha256=np.array(index.onnx_sha256),
        )
    os.replace(draft, path)


def read(path: Path) -> Index:
    """Reads what `write` wrote.

    Raises:
        RejectedError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ends = np.cumsum(file["lengths"])
            data = file["thumbnails"].tobytes()
            index = Index(
                images=[str(one) for one in file["images"]],
                features=file["features"].astype(np.float32),
                thumbnails=[data[end - length : end] for end, length in zip(ends, file["lengths"], strict=True)],
                trained=int(file["trained"]),
                sessions=str(file["sessions"]),
                onnx_sha256=str(file["onnx_sha256"]),
            )
    except (OSError, ValueError, KeyError, EOFError) as problem:
        raise RejectedError(f"{path.name} is no index of training images ({problem})") from None
    if not len(index.images) == len(index.features) == len(index.thumbnails):
        raise RejectedError(f"{path.name} is damaged: its parts are not of one length")
    return index


def find(index: Index, model: bytes, frame: np.ndarray, count: int) -> list[Found]:
    """The `count` images most like a frame, the most alike first.

    Raises:
        RejectedError: index and network do not belong together.
    """
    vector = next(features(model, [frame]))
    if index.features.ndim != 2 or index.features.shape[1] != len(vector):
        raise RejectedError("the index of training images is of another network; `dvc repro -f register` makes it anew")
    alike = index.features @ vector
    order = np.argsort(-alike)[:count]
    return [Found(index.images[at], float(alike[at]), index.thumbnails[at]) for at in order]


def read_frame(data: bytes) -> np.ndarray:
    """(224, 224, 3) uint8, RGB; another size is resized, as the camera's frame is on the robot.

    Raises:
        RejectedError: it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise RejectedError(f"a frame of {picture.width}x{picture.height} is too large")
            shape = (preprocess.WIDTH, preprocess.HEIGHT)
            found = picture.convert("RGB")
            return np.asarray(found if found.size == shape else found.resize(shape), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise RejectedError(f"this is no picture that can be read ({problem})") from None


def fetch(lineage: Lineage, tracking_uri: str) -> tuple[Index, bytes]:
    """Index and model of the run that a passport names, out of MLflow; the last few are kept in memory.

    Raises:
        OperatorError: MLflow does not answer.
        RejectedError: the run has no index (it is older than the index), or another model.
    """
    return _fetch(lineage.run_id, lineage.onnx_sha256, tracking_uri)


@functools.lru_cache(maxsize=2)
def _fetch(run_id: str, onnx_sha256: str, tracking_uri: str) -> tuple[Index, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        index = read(_download(run_id, f"{FOLDER}/{FILE}", tracking_uri, folder))
        model = _download(run_id, MODEL, tracking_uri, folder).read_bytes()
    if {hashlib.sha256(model).hexdigest(), index.onnx_sha256} != {onnx_sha256}:
        raise RejectedError(f"run {run_id} in MLflow holds another model now than the one of this event's engine")
    return index, model


def _download(run_id: str, path: str, tracking_uri: str, folder: str) -> Path:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    client: Any = MlflowClient(tracking_uri=tracking_uri)
    try:
        if path not in {artifact.path for artifact in client.list_artifacts(run_id, path.rpartition("/")[0])}:
            raise RejectedError(
                f"run {run_id} in MLflow has no {path}: it was registered before there was one; "
                "`dvc repro -f register` on its commit adds it"
            )
        return Path(client.download_artifacts(run_id, path, folder))
    except (MlflowException, RequestException, OSError) as problem:
        said = first_line(problem)[:300]
        raise OperatorError(f"MLflow at {tracking_uri} does not give {path} of run {run_id}: {said}") from None


def get(image: str, sessions: str, lineage: Lineage) -> str:
    """The command that gets an image of the index back."""
    session, _, name = image.partition("/")
    path = f"{sessions.strip('/')}/{session}.zip"
    return f"dvc get . {path} --rev {lineage.git_commit} -o {session}.zip && unzip -o {session}.zip '{name}'"
