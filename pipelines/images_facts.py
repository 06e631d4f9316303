"""What is known of an image without a network: size, brightness, sharpness, perceptual hash, near-duplicates.

Whether a value is good enough is not decided here: data/schema.yaml says it, pipelines/expectations.py asks it.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # a larger image is not decoded: it may be a bomb
NEAR_BITS = 16  # of 256: images no further apart show the same view
_HASH_SIDE = 16
HASH_WORDS = 4  # a hash is 4 x uint64
_BLOCK_ROWS = 256

# Whatever Pillow's decoders raise for bytes that are not an image, or not a whole one.
DECODE_ERRORS = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError,
    ArithmeticError, Image.DecompressionBombError,
)  # fmt: skip


class ImageFacts(NamedTuple):
    """One image, measured. Where it cannot be decoded, `readable` is false and the measures are 0 or NaN."""

    readable: bool
    width: int
    height: int
    mode: str  # Pillow's: RGB, L, CMYK, ...
    bytes: int
    brightness: float  # mean of the grey image, 0..255
    sharpness: float  # variance of the Laplacian of the grey image
    dhash: str  # 64 hex digits


def measure(data: bytes) -> ImageFacts:
    """Decodes an image and measures it. Never raises for what the bytes hold."""
    unreadable = ImageFacts(False, 0, 0, "", len(data), float("nan"), float("nan"), "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # bounded by MAX_PIXELS
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                return unreadable
            image.load()
            grey = image.convert("L")
    except DECODE_ERRORS:
        return unreadable
    pixels = np.asarray(grey, dtype=np.float32)  # (H, W) in 0..255
    return ImageFacts(
        readable=True,
        width=image.width,
        height=image.height,
        mode=image.mode,
        bytes=len(data),
        brightness=round(float(pixels.mean()), 2),
        sharpness=round(_sharpness(pixels), 2),
        dhash=difference_hash(grey),
    )


def _sharpness(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of (H, W) float32: low where an image is blurred (Pech-Pacheco 2000)."""
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(laplacian.var())


def difference_hash(grey: Image.Image) -> str:
    """256 bits as 64 hex digits: is each of 16x16 cells brighter than its left neighbour (dHash, Krawetz 2013)."""
    small = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = small[:, 1:] > small[:, :-1]  # (16, 16)
    return np.packbits(bits).tobytes().hex()


class NearDuplicates(NamedTuple):
    group: np.ndarray  # (N,) int: images joined by a chain of near-identical ones share a number
    contradicts: np.ndarray  # (N,) bool: an image no further than NEAR_BITS away has another label


def near_duplicates(hashes: list[str], labels: list[str]) -> NearDuplicates:
    """Groups images that show the same view.

    Args:
        hashes: 64 hex digits each; empty for an image that could not be decoded, which gets a group of its own.
        labels: of the same images.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Equal hashes are one point, so that a thousand frozen frames stay cheap; an unreadable image is one of its own.
    names = [digits or f"unreadable {i}" for i, digits in enumerate(hashes)]
    points = {name: point for point, name in enumerate(dict.fromkeys(names))}
    point_of = np.array([points[name] for name in names], dtype=np.int64)
    hashed = [name for name in points if not name.startswith("unreadable")]
    left, right = _near_pairs(_words(hashed))
    point_of_hash = np.array([points[name] for name in hashed], dtype=np.int64)
    left, right = point_of_hash[left], point_of_hash[right]
    links = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(points), len(points)))
    _, group_of = connected_components(links, directed=False)
    return NearDuplicates(_by_first_use(group_of[point_of]), _contradicts(left, right, point_of, labels, len(points)))


def _words(hashes: list[str]) -> np.ndarray:
    """(N, 4) uint64."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint64).reshape(-1, HASH_WORDS)


def _near_pairs(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pairs (left < right) at most NEAR_BITS apart."""
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(words), _BLOCK_ROWS):
        rows, columns = words[start : start + _BLOCK_ROWS], words[start:]
        apart = np.zeros((len(rows), len(columns)), dtype=np.uint16)
        for word in range(HASH_WORDS):
            apart += np.bitwise_count(rows[:, None, word] ^ columns[None, :, word])
        left, right = np.nonzero(np.triu(apart <= NEAR_BITS, k=1))
        lefts.append(left + start)
        rights.append(right + start)
    return np.concatenate(lefts), np.concatenate(rights)


def _by_first_use(groups: np.ndarray) -> np.ndarray:
    """Renumbers groups 0, 1, 2, ... in the order in which the images name them."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _contradicts(
    left: np.ndarray, right: np.ndarray, point_of: np.ndarray, labels: list[str], points: int
) -> np.ndarray:
    names, label_of = np.unique(labels, return_inverse=True)
    here = np.zeros((points, len(names)), dtype=bool)  # which labels the images at a point have
    here[point_of, label_of] = True
    near = here.copy()
    np.logical_or.at(near, left, here[right])
    np.logical_or.at(near, right, here[left])
    others = near[point_of]
    others[np.arange(len(point_of)), label_of] = False
    return np.asarray(others.any(axis=1))
