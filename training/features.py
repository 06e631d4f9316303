"""What a network's fixed layers make of images, computed once for each image and kept in `build/cache`.

Solving the last layer needs nothing else, and the stages `train` and `unseen` ask for the same images again and again:
each fold has most of them. Like the pack, a cache and nothing else: an image is known by the digest of its pixels, the
file by that of the network, and what does not agree with its own digest is computed anew.
"""

import contextlib
import hashlib
import logging
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Dict, List, Optional, Type

import numpy as np
import torch

from training import distributed
from training.inference import BATCH, infer
from training.machine import cores, in_order
from training.model import Network
from training.pack_file import Chosen, Pixels

KEPT = 4  # files, of the networks used last
DIGEST_BYTES = 16
_CHUNK = 64  # images that are read and digested at a time

LOG = logging.getLogger(__name__)


class Features:
    """Features of images by one network, whose last layer was taken away; `with` it, new ones are kept in the end.

    Processes of torchrun share the work and keep nothing: each would have a cache of its own.
    """

    def __init__(self, network: Network, folder: Optional[Path]) -> None:
        """
        Args:
            network: gives (N, F) features.
            folder: of the cache; None: nothing is read or kept.
        """
        self._network = network
        self._path: Optional[Path] = None
        self._known: Dict[bytes, np.ndarray] = {}
        self._grown = False
        if folder is not None and distributed.size() == 1:
            self._about = _about(network)
            self._path = folder / f"features-{self._about[:16]}.npz"
            self._known = _read(self._path, self._about)

    def __enter__(self) -> "Features":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], problem: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is None and self._path and self._grown:
            _write(self._path, self._about, self._known)

    def of(self, pixels: Pixels, mirror: bool = False, what: str = "features") -> np.ndarray:
        """(N, 224, 224, 3) uint8 images, or their mirror images, to (N, F) float32."""
        if self._path is None:
            return infer(self._network, pixels, what, mirror)
        digests = [digest + bytes([mirror]) for digest in _digests(pixels)]
        missing = np.array([n for n, digest in enumerate(digests) if digest not in self._known], dtype=np.int64)
        if len(missing):
            # Whole batches: in a smaller one the last digits may be others, and would depend on what was known before.
            padded = np.pad(missing, (0, -len(missing) % BATCH), mode="edge")
            found = infer(self._network, Chosen(pixels, padded), what, mirror)
            self._known.update(zip((digests[n] for n in missing), found))  # noqa: B905 (Python 3.8)
            self._grown = True
        return np.stack([self._known[digest] for digest in digests])


def _about(network: Network) -> str:
    """Digest of all that the features depend on but the image."""
    device = network.scale.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    digest = hashlib.sha256(repr((network.name, network.resolution, torch.__version__, name)).encode())
    for key, tensor in sorted(network.backbone.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digests(pixels: Pixels) -> List[bytes]:
    """One for each image; they are read some at a time."""

    def of(start: int) -> List[bytes]:
        frames = np.ascontiguousarray(pixels[start : start + _CHUNK])
        return [hashlib.blake2b(frame.data, digest_size=DIGEST_BYTES).digest() for frame in frames]

    with ThreadPoolExecutor(cores()) as pool:
        return [digest for some in in_order(pool, of, range(0, len(pixels), _CHUNK)) for digest in some]


def _read(path: Path, about: str) -> Dict[bytes, np.ndarray]:
    """What the file knows; nothing where it is missing, damaged or of another network."""
    try:
        with np.load(str(path)) as file:
            keys, values, digest = file["keys"], file["values"], file["digest"].tobytes()
        if digest != _digest(about, keys, values):
            raise ValueError("its digest is another")
        os.utime(str(path))  # used last
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        LOG.warning("%s is damaged (%s) and made anew", path, problem)
        return {}
    return {key.tobytes(): value for key, value in zip(keys, values)}  # noqa: B905 (Python 3.8)


def _write(path: Path, about: str, known: Dict[bytes, np.ndarray]) -> None:
    """Replaces the file in one step; a disk that does not take it costs time the next time, and nothing else."""
    keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
    values = np.stack(list(known.values()))
    draft = path.with_suffix(".draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.savez(file, keys=keys, values=values, digest=np.frombuffer(_digest(about, keys, values), dtype=np.uint8))
        os.replace(str(draft), str(path))
        files = sorted(path.parent.glob("features-*.npz"), key=lambda file: file.stat().st_mtime)
        for old in files[:-KEPT]:
            old.unlink()
    except OSError as problem:
        LOG.warning("features are not kept in %s (%s); they are computed again the next time", path, problem)
        with contextlib.suppress(OSError):
            draft.unlink()


def _digest(about: str, keys: np.ndarray, values: np.ndarray) -> bytes:
    digest = hashlib.sha256(about.encode())
    for array in (keys, values):
        digest.update(repr((array.dtype, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
