"""What a robot is asked to build: the list of the release service says where to look, the signed repository says what.

Only what is signed is taken: the order, and the files that it names, each with the length and digest of the metadata.
"""

import logging
from pathlib import Path
from typing import List, NamedTuple, Optional

import msgspec
import urllib3

from serving import files
from serving.config import RepositorySettings
from serving.contracts.builds import (
    BUILDS_PATH,
    MAX_ENGINE_BYTES,
    MAX_ONNX_BYTES,
    MAX_ORDER_BYTES,
    ORDER_FILE,
    BuildOrder,
    OpenBuild,
)
from serving.contracts.releases import EngineFile, file_path
from serving.errors import OperatorError, RejectedError
from serving.preprocess import PREPROCESSING
from serving.repository import SignedRepository, errors_translated

log = logging.getLogger("build")

_MAX_LIST_BYTES = 1 << 20
_MAX_GOLDEN_BYTES = 64 << 20


class Ordered(NamedTuple):
    """A signed order, and its files in a folder of this robot."""

    order: BuildOrder
    onnx: Path
    golden: Path
    prebuilt: Optional[Path]


def open_builds(service: str, target: str, timeout_s: float) -> List[OpenBuild]:
    """What the release service lists for a target, newest first; a hint, not to be trusted.

    Raises:
        OperatorError: it does not answer, or not as it should.
    """
    url = service.rstrip("/") + BUILDS_PATH
    try:
        with urllib3.PoolManager(retries=False, timeout=timeout_s).request("GET", url, preload_content=False) as answer:
            status, content = answer.status, answer.read(_MAX_LIST_BYTES)
    except urllib3.exceptions.HTTPError as problem:
        raise OperatorError(f"{url} does not answer: {problem}; is --service the release service?") from None
    if status != 200:
        raise OperatorError(f"{url}: HTTP status {status}; is --service the release service?")
    try:
        found = msgspec.json.decode(content, type=List[OpenBuild])
    except ValueError as problem:
        raise OperatorError(f"{url} answers something else ({problem}); is --service the release service?") from None
    return [one for one in found if one.target == target]


def fetch(settings: RepositorySettings, folder: Path, release_id: str, target: str) -> Ordered:
    """Brings a signed order and its files, verified.

    Args:
        folder: of this command alone: TUF's metadata and the files are kept there.

    Raises:
        RejectedError: it is not signed, or is about something else.
        OperatorError: repository or disk do not answer as they should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    repository = SignedRepository(settings, folder / "tuf")
    with errors_translated():
        repository.refresh()
        info = repository.find(file_path(release_id, target, ORDER_FILE))
        if info is None:
            raise RejectedError(f"nothing signed asks for {target} of {release_id}")
        order = _decoded(repository.read(info, MAX_ORDER_BYTES), info.path)
        _check(order, release_id, target)
        # An engine that only has to be measured needs no ONNX file.
        wanted = [(order.golden, _MAX_GOLDEN_BYTES), (order.prebuilt or order.onnx, MAX_ONNX_BYTES)]
        for file, limit in wanted:
            _bring(repository, file, folder / Path(file.path).name, limit)
    onnx, golden = folder / Path(order.onnx.path).name, folder / Path(order.golden.path).name
    return Ordered(order, onnx, golden, folder / Path(order.prebuilt.path).name if order.prebuilt else None)


def _bring(repository: SignedRepository, file: EngineFile, place: Path, limit: int) -> None:
    info = repository.find(file.path)
    if info is None or (info.length, info.hashes.get("sha256")) != (file.bytes, file.sha256):
        raise RejectedError(f"{file.path} is not signed as the order describes it")
    if info.length > limit:
        raise RejectedError(f"{file.path} has {info.length} bytes, {limit} are allowed")
    if place.is_file() and files.sha256_of(place) == file.sha256:
        return
    log.info("downloading %s, %.1f MB", file.path, info.length / 1e6)
    repository.download(info, place)


def _decoded(raw: bytes, path: str) -> BuildOrder:
    try:
        return msgspec.json.decode(raw, type=BuildOrder)
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise RejectedError(f"{path} cannot be read: {problem}") from None


def _check(order: BuildOrder, release_id: str, target: str) -> None:
    if (order.release_id, order.target) != (release_id, target):
        raise RejectedError(f"the order is about {order.target} of {order.release_id}")
    if order.preprocessing != PREPROCESSING:
        raise RejectedError(f"its network wants frames as {order.preprocessing}, this robot makes {PREPROCESSING}")
    for file in (order.onnx, order.golden, *([order.prebuilt] if order.prebuilt else [])):
        if file.path != file_path(release_id, target, Path(file.path).name) or file.bytes > MAX_ENGINE_BYTES:
            raise RejectedError(f"the order names {file.path} of {file.bytes} bytes")
