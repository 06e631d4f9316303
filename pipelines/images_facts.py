"""What is known of an image without a network: size, brightness, sharpness, perceptual hash, near-duplicates.

Whether a value is good enough is not decided here: data/schema.yaml says it, pipelines/expectations.py asks it.
"""

import io
import itertools
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # a larger image is not decoded: it may be a bomb
NEAR_BITS = 16  # of 256: images no further apart show the same view
_HASH_SIDE = 16
_BANDS = NEAR_BITS + 1  # two hashes that differ in NEAR_BITS bits at most agree in one band of bits at least
_MOST_PENDING = 1 << 20  # pairs kept before they are folded into the groups

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
    """Groups images that show the same view; exact, and for images of many views far from comparing each with each.

    Args:
        hashes: 64 hex digits each; empty for an image that could not be decoded, which gets a group of its own.
        labels: of the same images.
    """
    # Equal hashes are one point, so that a thousand frozen frames stay cheap; an unreadable image is one of its own.
    point_of_name: dict[str, int] = {}
    names = (digits or f"unreadable {i}" for i, digits in enumerate(hashes))
    point_of = np.array([point_of_name.setdefault(name, len(point_of_name)) for name in names], dtype=np.int64)
    hashed = {name: point for name, point in point_of_name.items() if not name.startswith("unreadable")}
    point_of_hash = np.array(list(hashed.values()), dtype=np.int64)

    label_names, label_of = np.unique(labels, return_inverse=True)
    here = np.zeros((len(point_of_name), len(label_names)), dtype=bool)
    here[point_of, label_of] = True
    known = _Known(here)
    _compare(_bits(list(hashed)), point_of_hash, known)
    others = known.near[point_of]
    others[np.arange(len(point_of)), label_of] = False
    return NearDuplicates(_by_first_use(known.group[point_of]), np.asarray(others.any(axis=1)))


def _bits(hashes: list[str]) -> np.ndarray:
    """(N, 32) uint8: 256 bits each."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(-1, _HASH_SIDE**2 // 8)


def _compare(bits: np.ndarray, point_of: np.ndarray, known: "_Known") -> None:
    """Tells `known` the pairs at most NEAR_BITS apart, as far as they change anything.

    Only those are compared that agree in a whole band (multi-index hashing, Norouzi, Punjani and Fleet 2012). A band
    takes its bits from all over the image: neighbouring ones are too often alike to tell images apart.
    """
    words = np.ascontiguousarray(bits).view(np.uint64)  # (N, 4)
    shuffled = np.random.default_rng(0).permutation(bits.shape[1] * 8)
    for band in np.array_split(shuffled, _BANDS):
        key = ((bits[:, band // 8] >> (band % 8).astype(np.uint8)) & 1) @ (1 << np.arange(len(band)))  # (N,) int64
        order = np.argsort(key, kind="stable")  # equal keys become neighbours: a bucket
        key, points, sorted_words = key[order], point_of[order], words[order]
        first = np.flatnonzero(known.open_buckets(key, points))
        for distance in itertools.count(1):
            first = first[: np.searchsorted(first, len(key) - distance)]
            first = first[key[first] == key[first + distance]]
            if not len(first):
                break
            apart = np.bitwise_count(sorted_words[first] ^ sorted_words[first + distance]).sum(axis=1, dtype=np.int64)
            found = first[apart <= NEAR_BITS]
            if known.join(points[found], points[found + distance]):
                first = first[known.open_buckets(key, points)[first]]
        known.fold()


class _Known:
    """The groups of the points and the labels near them, in memory for the points and not for the pairs."""

    def __init__(self, here: np.ndarray) -> None:
        self.group = np.arange(len(here))
        self.near = here.copy()  # (points, labels) bool: of the images at a point and at the points near it
        self._here = here
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pairs = 0

    def join(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Notes near pairs; whether the groups were brought up to date."""
        for label in range(self._here.shape[1]):
            self.near[left[self._here[right, label]], label] = True
            self.near[right[self._here[left, label]], label] = True
        self._pending.append((left, right))
        self._pairs += len(left)
        return self._pairs > _MOST_PENDING and self.fold()

    def fold(self) -> bool:
        """Brings the groups up to date."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if self._pairs:
            left, right = (self.group[np.concatenate(side)] for side in zip(*self._pending, strict=True))
            size = len(self.group)
            links = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(size, size))
            self.group = connected_components(links, directed=False)[1][self.group]
        self._pending, self._pairs = [], 0
        return True

    def open_buckets(self, key: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(N,) bool: may comparing the points of a bucket still tell anything?

        Not where they are one group and each has every label of that group near it: a robot that stood still for an
        hour would else be compared frame with frame.
        """
        if not len(key):
            return np.empty(0, dtype=bool)
        group = self.group[points]
        of_group = np.zeros_like(self.near)
        for label in range(of_group.shape[1]):
            of_group[self.group[self._here[:, label]], label] = True
        lacking = (of_group[group] & ~self.near[points]).any(axis=1)
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        several = np.minimum.reduceat(group, starts) != np.maximum.reduceat(group, starts)
        open_bucket = several | np.logical_or.reduceat(lacking, starts)
        return np.asarray(np.repeat(open_bucket, np.diff(np.r_[starts, len(key)])))


def _by_first_use(groups: np.ndarray) -> np.ndarray:
    """Renumbers groups 0, 1, 2, ... in the order in which the images name them."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
