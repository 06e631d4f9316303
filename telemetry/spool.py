"""Messages on disk, in the order in which they came, until they are stored: what `fair.FairSink` puts aside.

Appending costs one write and one fsync for many messages, much less than storing them. Files `NUMBER.spool` hold
records with a checksum; a file goes when all of it is settled. The file `settled` holds how far that is. It is written
without fsync: it outlives the process, and after a power cut an older one only repeats what the store has already.
"""

import collections
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serving.errors import OperatorError

MAX_BYTES = 2**30  # on disk at most; about two million events
FILE_BYTES = 2**24  # a file that is larger is followed by the next
_HEAD = struct.Struct("<III")  # checksum of what follows, bytes of the topic, bytes of the payload
_SETTLED = struct.Struct("<QQ")  # file's number, offset in it
_NAME = re.compile(r"\d{12}\.spool")


@dataclass(frozen=True)
class Spooled:
    """One message, and where it ends."""

    topic: str
    payload: bytes
    number: int  # of the file
    end: int  # offset of the next record
    bytes: int  # on disk


class Spool:
    """One process' folder of messages put aside.

    Args:
        folder: made when it is not there.
        max_bytes: from here on it is `full`.

    Raises:
        OperatorError: it cannot be read or written, is damaged, or belongs to a process that runs.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.bytes = 0  # on disk and not settled, or to be written
        self.backlog: collections.Counter[str] = collections.Counter()  # messages by robot, SITE/ROBOT
        self._new: list[bytes] = []  # not on disk
        self._new_robots: list[str] = []
        self._taken: collections.deque[Spooled] = collections.deque()  # read, not settled
        self._reader: Iterator[Spooled] | None = None
        self._settled = (0, 0)  # number of a file, and the offset up to which all is settled
        self._number = self._size = 0  # of the file that is written, and its bytes that are safe
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._mark = os.open(folder / "settled", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._begin()
        except BlockingIOError:
            raise OperatorError(
                f"{folder} is used by another collector or bridge; give this one another --spool"
            ) from None
        except OSError as problem:
            raise self._broken(problem) from None

    def __len__(self) -> int:
        return self.backlog.total()

    @property
    def full(self) -> bool:
        return self.bytes >= self.max_bytes

    def append(self, topic: str, payload: bytes) -> None:
        """Takes a message; it is safe after the next `sync`."""
        name = topic.encode(errors="surrogateescape")
        body = name + payload
        record = _HEAD.pack(zlib.crc32(body), len(name), len(payload)) + body
        self._new.append(record)
        self._new_robots.append(robot_of(topic))
        self.backlog[self._new_robots[-1]] += 1
        self.bytes += len(record)

    def sync(self) -> None:
        """Writes what was appended; on the disk when it returns.

        Raises:
            OperatorError: the disk does not take it; nothing of it counts as written.
        """
        if not self._new:
            return
        try:
            if self._size >= FILE_BYTES:
                self._next_file()
            text = memoryview(b"".join(self._new))
            at = self._size
            while text:
                written = os.pwrite(self._file, text, at)
                text, at = text[written:], at + written
            os.fdatasync(self._file)
        except OSError as problem:
            raise self._broken(problem) from None
        self._size = at
        self._new, self._new_robots = [], []

    def forget_unwritten(self) -> None:
        """What was appended and not written comes again from the broker."""
        self.bytes -= sum(map(len, self._new))
        self.backlog.subtract(self._new_robots)
        self._tidy(*set(self._new_robots))
        self._new, self._new_robots = [], []

    def take(self, count: int) -> list[Spooled]:
        """The next messages that are on the disk, in order; each is given once, until `rewind`."""
        if self._reader is None:
            self._reader = self._from(*self._settled)
        found: list[Spooled] = []
        while len(found) < count:
            one = next(self._reader, None)
            if one is None:
                last = self._taken[-1] if self._taken else None
                self._reader = self._from(last.number, last.end) if last else None  # more may be written
                break
            found.append(one)
            self._taken.append(one)
        return found

    def settle(self, count: int) -> None:
        """The first `count` that were taken are safe elsewhere."""
        begun = self._settled[0]
        for _ in range(count):
            one = self._taken.popleft()
            robot = robot_of(one.topic)
            self.backlog[robot] -= 1
            self._tidy(robot)
            self.bytes -= one.bytes
            self._settled = (one.number, one.end)
        os.pwrite(self._mark, _SETTLED.pack(*self._settled), 0)
        if self._settled[0] != begun:
            self._drop_settled()
        if not self.backlog and self._size:  # empty: begin anew, so that no file stays large
            self._next_file()
            self._settled, self._reader = (self._number, 0), None
            os.pwrite(self._mark, _SETTLED.pack(*self._settled), 0)
            self._path(self._number - 1).unlink(missing_ok=True)

    def rewind(self) -> None:
        """What was taken and not settled is given again."""
        self._taken.clear()
        self._reader = None

    def close(self) -> None:
        os.close(self._file)
        os.close(self._mark)

    # ---- files

    def _begin(self) -> None:
        """Finds what an earlier process left: cuts a record that was not written to its end, and counts the rest."""
        numbers = self._numbers()
        mark = os.pread(self._mark, _SETTLED.size, 0)
        if len(mark) == _SETTLED.size:
            self._settled = _SETTLED.unpack(mark)
        if numbers and self._settled[0] < numbers[0]:
            self._settled = (numbers[0], 0)
        end = 0
        for one in self._from(*self._settled):
            self.backlog[robot_of(one.topic)] += 1
            self.bytes += one.bytes
            end = one.end if one.number == numbers[-1] else 0
        self._number = max(1, self._settled[0], *numbers[-1:])
        end = max(end, self._settled[1] if self._settled[0] == self._number else 0)
        self._file = os.open(self._path(self._number), os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._file, end)
        self._size = end
        self._drop_settled()  # an earlier process may have ended just before it did
        self._sync_folder()

    def _drop_settled(self) -> None:
        for number in self._numbers():
            if number < self._settled[0]:
                self._path(number).unlink()

    def _next_file(self) -> None:
        os.ftruncate(self._file, self._size)  # what a failed write left
        fresh = os.open(self._path(self._number + 1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.close(self._file)
        self._file, self._number, self._size = fresh, self._number + 1, 0
        self._sync_folder()

    def _from(self, number: int, offset: int) -> Iterator[Spooled]:
        """Whole records from a place on; a broken one is the end of the last file, and damage in any other."""
        numbers = self._numbers()
        for at in [one for one in numbers if one >= number]:
            with self._path(at).open("rb") as file:
                begin = file.seek(offset if at == number else 0)
                while begin < self._end(at, file.fileno()):
                    one = _record(file, at, begin)
                    if one is None and at == numbers[-1]:
                        return
                    if one is None:
                        raise OperatorError(f"{file.name} is damaged at byte {begin}: move it away to go on without it")
                    begin = one.end
                    yield one

    def _end(self, number: int, file: int) -> int:
        return self._size if number == self._number else os.fstat(file).st_size

    def _numbers(self) -> list[int]:
        return sorted(int(name[:12]) for name in os.listdir(self.folder) if _NAME.fullmatch(name))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012d}.spool"

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _tidy(self, *robots: str) -> None:
        for robot in robots:
            if self.backlog[robot] <= 0:
                del self.backlog[robot]

    def _broken(self, problem: OSError) -> OperatorError:
        return OperatorError(f"the spool {self.folder} cannot be written ({problem.strerror}); free the disk")


def _record(file: BinaryIO, number: int, begin: int) -> Spooled | None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    check, topic_bytes, payload_bytes = _HEAD.unpack(head)
    wanted = topic_bytes + payload_bytes
    if not 0 < wanted <= os.fstat(file.fileno()).st_size - begin - _HEAD.size:
        return None
    body = file.read(wanted)
    if zlib.crc32(body) != check:
        return None
    topic = body[:topic_bytes].decode(errors="surrogateescape")
    return Spooled(topic, body[topic_bytes:], number, begin + _HEAD.size + wanted, _HEAD.size + wanted)


def robot_of(topic: str) -> str:
    """SITE/ROBOT of one of the topics that collector and bridge subscribe to."""
    return "/".join(topic.split("/", 4)[2:4])
