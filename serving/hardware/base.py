"""What the daemon needs of a body: a camera, two motors, and what it can tell about itself.

A kind of hardware registers under the entry-point group `jetloop.hardware`; `hardware.kind` in robot.toml names it.
So the simulator can be the body without serving/ importing it.
"""

import abc
import importlib.metadata
from typing import Any, Dict, NamedTuple, Optional, Protocol

import numpy as np

from serving.errors import OperatorError

GROUP = "jetloop.hardware"


class Frame(NamedTuple):
    pixels: np.ndarray  # (224, 224, 3) uint8, RGB; valid until the next read()
    captured_at: float  # seconds, time.monotonic(): when the light fell on the sensor


class Readings(NamedTuple):
    """None where this body has no such sensor; never a zero that passes for a reading."""

    temperature_c: Optional[float] = None
    battery_v: Optional[float] = None
    collisions: Optional[int] = None  # since the start, from a bumper or the simulator


class MotorsElsewhere(NamedTuple):
    """How the motor guard, a process of its own, opens a body's motors.

    Attributes:
        factory: `package.module:callable`. What it returns has `drive(left, right)` and `stop()`, as in `Motors`, and
            raises whatever it likes when the board does not answer. The module should import little, and no numpy:
            the guard starts again in milliseconds.
        options: keyword arguments of the factory; what JSON can hold.
    """

    factory: str
    options: Dict[str, Any]


class Motors(Protocol):
    """What DeadMan drives: a body in this process, or the motor guard in another."""

    def drive(self, left: float, right: float) -> None: ...

    def stop(self) -> None: ...


class Hardware(abc.ABC):
    """One robot's body. The control thread calls read() and drive(); any thread may call stop()."""

    def motors(self) -> Optional[MotorsElsewhere]:
        """How another process opens the motors; None: only this one can, and `kill -9` leaves them as they are.

        With a guard drive() is not called here; stop() still is, should the guard die.
        """
        return None

    @abc.abstractmethod
    def read(self, timeout_s: float) -> Optional[Frame]:
        """Waits for the newest frame; None when none came within `timeout_s`.

        Raises:
            OperatorError: the camera is gone.
        """

    @abc.abstractmethod
    def drive(self, left: float, right: float) -> None:
        """Sets both motors, each in -1..1, forward positive.

        Raises:
            OperatorError: the motor board does not answer.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Both motors to zero, at once, from any thread, also when called twice."""

    @abc.abstractmethod
    def readings(self) -> Readings:
        """What the body knows about itself now."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stops the motors and lets camera and buses go."""


def load(kind: str, options: Dict[str, Any]) -> Hardware:
    """Makes the body that robot.toml names.

    Args:
        kind: name of an entry point in the group `jetloop.hardware`.
        options: the table `[hardware.options]`, passed as keyword arguments.

    Raises:
        OperatorError: no such kind is installed, or it does not take these options.
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if kind not in found:
        raise OperatorError(f"hardware.kind is `{kind}`; installed here: {', '.join(sorted(found)) or 'none'}")
    try:
        made = found[kind].load()(**options)
    except ImportError as problem:
        raise OperatorError(f"hardware.kind `{kind}` needs what is not installed here: {problem}") from None
    except TypeError as problem:
        raise OperatorError(f"[hardware.options] does not fit hardware.kind `{kind}`: {problem}") from None
    if not isinstance(made, Hardware):
        raise OperatorError(f"hardware.kind `{kind}` is not a serving.hardware.base.Hardware")
    return made
