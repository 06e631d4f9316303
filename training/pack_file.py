"""The file that a pack is: written whole, and read with a checksum for every image. When one is made is pack.py's part.

.npy header and pixels    (N, 224, 224, 3) uint8, which `np.load(path, mmap_mode="r")` opens as well
index                     JSON: digest of the sessions, names, checksums, why an image could not be decoded
footer                    SHA-256 of the index, its length, a mark that the file is whole
"""

import hashlib
import io
import mmap
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type, Union
from zipfile import ZipFile

import msgspec
import numpy as np

from serving.errors import RejectedError
from serving.preprocess import FRAME_SHAPE
from training.frames import Listing, decode, open_session
from training.machine import cores, in_order
from training.progress import track

FRAME_BYTES = int(np.prod(FRAME_SHAPE))
_CHUNK = 32  # images that a thread decodes or checks at a time
_FOOTER = struct.Struct("<32sQ8s")
_WHOLE = b"JLPACK1\n"


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    digest: str  # of what it was made of: `Listing.digest`
    offset: int  # of the first pixel in the file
    images: List[str]
    crc32: List[int]
    unusable: Dict[int, str]  # number of an image -> why it could not be decoded


class Damaged(Exception):
    """A pack is not what was written."""


class PackedPixels:
    """Images in a memory-mapped pack: like an array (N, 224, 224, 3) uint8, of which parts are read when asked for.

    Takes a number, a slice, or an array of numbers, and gives an array of its own; `np.asarray` gives all of it.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, frames: np.ndarray, mapped: mmap.mmap, numbers: np.ndarray) -> None:
        self._frames, self._mapped, self._numbers = frames, mapped, numbers
        self.shape = (len(numbers), *FRAME_SHAPE)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, key: Union[int, slice, np.ndarray]) -> np.ndarray:
        chosen: np.ndarray = self._frames[self._numbers[key]]  # picked by number: a copy
        if isinstance(key, (int, np.integer)):
            chosen = chosen.copy()
        # The pages stay in the system's cache, and no longer count as this process's memory.
        self._mapped.madvise(mmap.MADV_DONTNEED)
        return chosen

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


class Chosen:
    """Some of the images, which are read when they are asked for; no more of an array than that."""

    def __init__(self, pixels: "Pixels", numbers: np.ndarray) -> None:
        self._pixels, self._numbers = pixels, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, some: Union[int, slice, np.ndarray]) -> np.ndarray:
        return np.asarray(self._pixels[self._numbers[some]])


Pixels = Union[np.ndarray, PackedPixels, Chosen]


class PackFile:
    """An open pack whose index is right; use as a context manager.

    Raises:
        Damaged: it is cut off, altered, or was made of other sessions.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._file = io.FileIO(str(path))
        try:
            self._index = _read_index(self._file)
            if self._index.digest != digest:
                raise Damaged("it was made of other sessions")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "PackFile":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._file.close()

    def numbers(self, images: Sequence[str]) -> np.ndarray:
        """(N,) int64: where the images are.

        Raises:
            KeyError: an image is not in the pack.
            RejectedError: an image could not be decoded.
        """
        number_of = {image: number for number, image in enumerate(self._index.images)}
        found = [number_of[image] for image in images]
        for number in found:
            if number in self._index.unusable:
                raise RejectedError(self._index.unusable[number])
        return np.array(found, dtype=np.int64)

    def pixels(self, numbers: np.ndarray, in_memory: bool, what: str) -> Pixels:
        """Compares the images with their checksums, and gives them, as an array or mapped.

        Raises:
            Damaged: one does not match.
        """
        held = np.empty((len(numbers) if in_memory else 0, *FRAME_SHAPE), dtype=np.uint8)

        def check(start: int) -> None:
            chosen = numbers[start : start + _CHUNK]
            room = held[start : start + _CHUNK] if in_memory else np.empty((len(chosen), *FRAME_SHAPE), dtype=np.uint8)
            for place, number in enumerate(chosen.tolist()):
                self._read_into(room[place], number)

        with ThreadPoolExecutor(cores()) as pool:
            starts = range(0, len(numbers), _CHUNK)
            for _ in track(in_order(pool, check, starts), what, total=len(starts)):
                pass
        return held if in_memory else self._mapped(numbers)

    def _read_into(self, frame: np.ndarray, number: int) -> None:
        # Read, not mapped: a file that became shorter is an error here, and the end of a process that has it mapped.
        room = memoryview(frame.reshape(-1))  # type: ignore[arg-type]
        got = os.preadv(self._file.fileno(), [room], self._index.offset + number * FRAME_BYTES)
        if got != FRAME_BYTES or zlib.crc32(room) != self._index.crc32[number]:
            raise Damaged(f"the checksum of {self._index.images[number]} does not match")

    def _mapped(self, numbers: np.ndarray) -> PackedPixels:
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        shape = (len(self._index.images), *FRAME_SHAPE)
        return PackedPixels(np.ndarray(shape, np.uint8, mapped, self._index.offset), mapped, numbers)


def _read_index(file: io.FileIO) -> _Index:
    size = os.fstat(file.fileno()).st_size
    footer = os.pread(file.fileno(), _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) != _FOOTER.size or not footer.endswith(_WHOLE):
        raise Damaged("its end is missing")
    digest, length, _ = _FOOTER.unpack(footer)
    start = size - _FOOTER.size - length
    text = os.pread(file.fileno(), length, start) if start > 0 else b""
    if hashlib.sha256(text).digest() != digest:
        raise Damaged("the checksum of its index does not match")
    index = msgspec.json.decode(text, type=_Index)
    if index.offset + len(index.images) * FRAME_BYTES != start:
        raise Damaged("its size is not that of its images")
    return index


def write(path: Path, sessions: Path, listing: Listing) -> None:
    """Decodes all images of the sessions into a file; one that cannot be decoded is noted with its reason.

    Raises:
        OSError: the disk does not take it.
        OperatorError: a session cannot be read.
    """
    crc32: List[int] = []
    unusable: Dict[int, str] = {}
    with path.open("wb") as file, ThreadPoolExecutor(cores()) as pool:
        shape = (len(listing.images), *FRAME_SHAPE)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.flush()

        def work(chunk: "_Chunk") -> "List[Tuple[int, str]]":
            return _decode_into(file.fileno(), offset, chunk)

        chunks = _chunks(sessions, listing)
        for found in track(in_order(pool, work, chunks), "decoding images once", total=-(-shape[0] // _CHUNK)):
            for checksum, problem in found:
                if problem:
                    unusable[len(crc32)] = problem
                crc32.append(checksum)
        text = msgspec.json.encode(_Index(listing.digest, offset, listing.images, crc32, unusable))
        file.seek(offset + len(crc32) * FRAME_BYTES)
        file.write(text + _FOOTER.pack(hashlib.sha256(text).digest(), len(text), _WHOLE))
        # Not synced, which would take minutes for a large pack: what a power cut takes away, the checksums miss.


class _Chunk(NamedTuple):
    archive: ZipFile
    first: int  # number of the first image
    images: List[str]  # of one session


def _chunks(sessions: Path, listing: Listing) -> Iterator[_Chunk]:
    archive, opened, start = None, "", 0
    while start < len(listing.images):
        session = listing.images[start].partition("/")[0]
        if archive is None or session != opened:
            # The one before is closed with the last chunk that holds it.
            archive, opened = open_session(sessions / f"{session}.zip"), session
        images = [name for name in listing.images[start : start + _CHUNK] if name.startswith(f"{session}/")]
        yield _Chunk(archive, start, images)
        start += len(images)


def _decode_into(descriptor: int, offset: int, chunk: _Chunk) -> "List[Tuple[int, str]]":
    """(checksum, why it is unusable) of each image, whose pixels are then in the file; an unusable one is all zero."""
    frames = np.zeros((len(chunk.images), *FRAME_SHAPE), dtype=np.uint8)
    found = []
    for place, image in enumerate(chunk.images):
        problem = ""
        try:
            frames[place] = decode(chunk.archive, image)
        except RejectedError as reason:
            problem = str(reason)
        found.append((zlib.crc32(memoryview(frames[place].reshape(-1))), problem))  # type: ignore[arg-type]
    left, at = memoryview(frames.reshape(-1)), offset + chunk.first * FRAME_BYTES  # type: ignore[arg-type]
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
    return found
