"""The motors of the simulated body: a cell of memory that the arena reads, and that the motor guard can write.

The standard library alone: the guard, a small process, imports this.
"""

import mmap
import os
import struct
import time

_CELL = struct.Struct("=ddd")  # time.monotonic() of the command, left, right


class CellMotors:
    """Two motors that are three numbers in shared memory.

    Args:
        path: of the memory's file; empty: memory of this object's own.
    """

    def __init__(self, path: str = "") -> None:
        descriptor = os.open(path, os.O_RDWR) if path else os.memfd_create("motors")
        if not path:
            os.ftruncate(descriptor, _CELL.size)
        self._descriptor = descriptor
        self._cell = mmap.mmap(descriptor, _CELL.size)

    @property
    def path(self) -> str:
        """Where another process finds the memory, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def drive(self, left: float, right: float) -> None:
        """Sets both motors, each in -1..1."""
        _CELL.pack_into(self._cell, 0, time.monotonic(), left, right)

    def stop(self) -> None:
        self.drive(0.0, 0.0)

    def command(self) -> "tuple[float, float, float]":
        """What they were told last: when (time.monotonic()), left, right."""
        at_s, left, right = _CELL.unpack_from(self._cell)
        return at_s, left, right

    def close(self) -> None:
        self._cell.close()
        os.close(self._descriptor)
