"""The Jetbot's motor boards over I2C: Waveshare and Adafruit (PCA9685 before H-bridges), SparkFun (SCMD).

No camera here, and no numpy: the motor guard opens these motors in a small process of its own. Register numbers are
from the chips' data sheets, pins and directions from the Jetbot project (jetbot/motor.py, jetbot/robot.py) and the
boards' libraries (Adafruit-Motor-HAT-Python-Library, Qwiic_SCMD_Py). Every transfer that fails is an OperatorError; the
first drive() after one sets the board up again: a board that lost its power for a moment needs no restart.
"""

import abc
import math
import time
from typing import Any, Callable, Dict, List, Protocol, Type

from serving.errors import OperatorError


class Bus(Protocol):
    """What is used of smbus2.SMBus. A transfer that fails raises OSError."""

    def read_byte_data(self, i2c_addr: int, register: int) -> int: ...

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> List[int]: ...

    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None: ...

    def write_i2c_block_data(self, i2c_addr: int, register: int, data: List[int]) -> None: ...

    def close(self) -> None: ...


def open_bus(number: int) -> Bus:
    """The I2C bus /dev/i2c-`number`.

    Raises:
        OperatorError: it is not there, not for this user, or smbus2 is not installed.
    """
    try:
        import smbus2
    except ImportError:
        raise OperatorError("smbus2 is not installed; `pip install 'jetloop[device]'` brings it") from None
    try:
        bus: Bus = smbus2.SMBus(number)
    except PermissionError:
        raise OperatorError(
            f"/dev/i2c-{number} is not for this user; add it to the group: usermod -aG i2c USER"
        ) from None
    except OSError as problem:
        raise OperatorError(
            f"/dev/i2c-{number} cannot be opened: {problem.strerror}; see hardware.options.i2c_bus"
        ) from None
    return bus


class MotorBoard(abc.ABC):
    """Two motors. Subclasses know the registers; each of their methods may raise OSError.

    Args:
        bus: the I2C bus.
    """

    name = ""
    address = 0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @abc.abstractmethod
    def begin(self) -> None:
        """Stops the motors, whatever ran before, and sets the board up."""

    @abc.abstractmethod
    def write(self, left: float, right: float) -> None:
        """Sets both motors, each in -1..1, forward positive."""

    @abc.abstractmethod
    def zero(self) -> None:
        """Takes the power off both motors, with as few transfers as the board allows."""


class AdafruitBoard(MotorBoard):
    """Adafruit's DC Motor FeatherWing or HAT: a PCA9685 at 0x60 that feeds TB6612 bridges.

    PCA9685 data sheet (NXP, rev. 4): MODE1 and PRE_SCALE in 7.3.1 and 7.3.5, the four registers of an output and its
    full-on and full-off bits in 7.3.3, ALL_LED in 7.3.4. Outputs change at the end of a transfer (MODE2, OCH = 0), so
    that one block sets both motors at once. Motor 1 is PWM 8, IN2 9, IN1 10; motor 2 is PWM 13, IN2 12, IN1 11. As in
    the Jetbot project, forward is the board's BACKWARD: IN1 low, IN2 high.
    """

    name = "adafruit"
    address = 0x60

    _MODE1, _MODE2, _PRE_SCALE, _ALL_LED_OFF_H = 0x00, 0x01, 0xFE, 0xFD
    _SLEEP, _AUTO_INCREMENT, _TOTEM_POLE, _FULL = 0x10, 0x20, 0x04, 0x10
    _PRE_SCALE_1600_HZ = 3  # round(25 MHz / 4096 / 1600 Hz) - 1, as Adafruit's library sets it
    _OSCILLATOR_S = 0.001  # 0.5 ms at most until the oscillator runs, 7.3.1.1

    def begin(self) -> None:
        self.zero()
        self._set(self._MODE2, self._TOTEM_POLE)
        self._set(self._MODE1, self._SLEEP)  # PRE_SCALE can be written in sleep alone
        self._set(self._PRE_SCALE, self._PRE_SCALE_1600_HZ)
        self._set(self._MODE1, self._AUTO_INCREMENT)
        time.sleep(self._OSCILLATOR_S)
        found = self._bus.read_byte_data(self.address, self._MODE1)
        if found & 0x7F != self._AUTO_INCREMENT:
            raise OSError(0, f"MODE1 reads 0x{found:02x}: what answers is no PCA9685")

    def write(self, left: float, right: float) -> None:
        block = [
            *self._duty(abs(left)),  # 8
            *self._level(left > 0),  # 9, IN2
            *self._level(left < 0),  # 10, IN1
            *self._level(right < 0),  # 11, IN1
            *self._level(right > 0),  # 12, IN2
            *self._duty(abs(right)),  # 13
        ]
        self._bus.write_i2c_block_data(self.address, self._first(8), block)

    def zero(self) -> None:
        self._set(self._ALL_LED_OFF_H, self._FULL)  # every output off, in one transfer of a byte

    def _set(self, register: int, value: int) -> None:
        self._bus.write_byte_data(self.address, register, value)

    @staticmethod
    def _first(output: int) -> int:
        """Register LEDn_ON_L; ON_H, OFF_L and OFF_H follow."""
        return 0x06 + 4 * output

    @classmethod
    def _duty(cls, share: float) -> List[int]:
        """The four registers of an output that is on for a share of the time, 0..1."""
        counts = round(share * 4096)
        if counts >= 4096 or counts <= 0:  # the counts of on and off must never be the same, 7.3.4
            return cls._level(counts > 0)
        return [0, 0, counts & 0xFF, counts >> 8]

    @classmethod
    def _level(cls, high: bool) -> List[int]:
        return [0, cls._FULL, 0, 0] if high else [0, 0, 0, cls._FULL]


class WaveshareBoard(AdafruitBoard):
    """Waveshare's JetBot board: the same PCA9685, its bridges at outputs 0 and 1 (left), 2 and 3 (right).

    The Jetbot project feeds both sets of pins, so that one program runs on either board; so does this.
    """

    name = "waveshare"

    def write(self, left: float, right: float) -> None:
        block = [
            *self._duty(max(0.0, -left)),  # 0
            *self._duty(max(0.0, left)),  # 1
            *self._duty(max(0.0, right)),  # 2
            *self._duty(max(0.0, -right)),  # 3
        ]
        self._bus.write_i2c_block_data(self.address, self._first(0), block)
        super().write(left, right)


class SparkfunBoard(MotorBoard):
    """SparkFun's Qwiic Motor Driver: an SCMD at 0x5D.

    SCMD data sheet: a drive level is 0x80 at rest; like the Jetbot project with Qwiic_SCMD_Py (direction 0), forward is
    below that. The board has a watchdog of its own (FSAFE_TIME, in 10 ms): when nothing is written for that long it
    sets both levels to rest (FSAFE_CTRL, 0x11 from the factory), also when this whole computer hangs. Its firmware
    takes one register a write.
    """

    name = "sparkfun"
    address = 0x5D

    _ID, _ID_IS = 0x01, 0xA9
    _LEFT, _RIGHT, _ENABLE, _FAILSAFE_10MS = 0x20, 0x21, 0x70, 0x76
    _REST = 0x80
    _FAILSAFE_S = 0.2
    _SETTLE_S = 0.001  # changes of ENABLE and FSAFE_TIME keep the board busy; what comes meanwhile may be lost

    def begin(self) -> None:
        self.zero()
        found = self._bus.read_byte_data(self.address, self._ID)
        if found != self._ID_IS:
            raise OSError(0, f"its ID reads 0x{found:02x}, not 0x{self._ID_IS:02x}: what answers is no SCMD")
        time.sleep(self._SETTLE_S)
        self._set(self._FAILSAFE_10MS, round(self._FAILSAFE_S / 0.01))
        time.sleep(self._SETTLE_S)

    def write(self, left: float, right: float) -> None:
        self._set(self._LEFT, self._drive_level(left))
        self._set(self._RIGHT, self._drive_level(right))
        self._set(self._ENABLE, 1)  # every time, as the Jetbot project does: a board that lost its power is disabled

    def zero(self) -> None:
        self._set(self._ENABLE, 0)  # takes the power off both bridges
        self._set(self._LEFT, self._REST)
        self._set(self._RIGHT, self._REST)

    def _set(self, register: int, value: int) -> None:
        self._bus.write_byte_data(self.address, register, value)

    @classmethod
    def _drive_level(cls, speed: float) -> int:
        return min(max(cls._REST - round(128 * speed), 0), 255)


BOARDS: Dict[str, Type[MotorBoard]] = {board.name: board for board in (WaveshareBoard, AdafruitBoard, SparkfunBoard)}


class JetbotMotors:
    """The two motors of a Jetbot, as the motor guard and the body drive them.

    Args:
        board: `waveshare`, `adafruit` or `sparkfun`.
        i2c_bus: number of the bus: 1 is the one on the Jetson Nano's pins 3 and 5.
        left_alpha, right_alpha: factors of the speeds, for motors that do not run alike; a negative one turns a motor
            that is wired the other way round.
        left_beta, right_beta: added to a speed in its own direction, for motors that start late. Zero stays zero.
        bus: an open bus, in place of `i2c_bus`.

    Raises:
        OperatorError: an option is not allowed, or the board does not answer.
    """

    def __init__(
        self,
        board: str = "waveshare",
        i2c_bus: int = 1,
        left_alpha: float = 1.0,
        right_alpha: float = 1.0,
        left_beta: float = 0.0,
        right_beta: float = 0.0,
        bus: "Bus | None" = None,
    ) -> None:
        if board not in BOARDS:
            raise OperatorError(f"hardware.options.board is `{board}`; allowed: {', '.join(BOARDS)}")
        alphas = {"left_alpha": left_alpha, "right_alpha": right_alpha}
        for name, value in {**alphas, "left_beta": left_beta, "right_beta": right_beta}.items():
            low = -2 if name in alphas else 0
            if not (isinstance(value, (int, float)) and low <= value <= 2):
                raise OperatorError(f"hardware.options.{name} is {value!r}; it must be a number from {low} to 2")
        self._left, self._right = (left_alpha, left_beta), (right_alpha, right_beta)
        self._bus = open_bus(i2c_bus) if bus is None else bus
        self._board = BOARDS[board](self._bus)
        self._ready = False
        try:
            self._begin()
        except OperatorError:
            self._bus.close()
            raise

    def drive(self, left: float, right: float) -> None:
        """Sets both motors, each in -1..1, forward positive; a value outside is taken as the nearest.

        Raises:
            OperatorError: the board does not answer.
        """
        if not self._ready:
            self._begin()
        self._do("drive", lambda: self._board.write(_scaled(left, *self._left), _scaled(right, *self._right)))

    def stop(self) -> None:
        """Takes the power off both motors.

        Raises:
            OperatorError: the board does not answer.
        """
        self._do("stop", self._board.zero)

    def close(self) -> None:
        """Stops the motors and lets the bus go.

        Raises:
            OperatorError: the board does not answer.
        """
        try:
            self.stop()
        finally:
            self._bus.close()

    def _begin(self) -> None:
        self._do("begin", self._board.begin)
        self._ready = True

    def _do(self, what: str, transfer: Callable[[], Any]) -> None:
        try:
            transfer()
        except OSError as problem:
            self._ready = False
            board = self._board
            raise OperatorError(
                f"the {board.name} motor board at I2C address 0x{board.address:02x} does not answer ({what}: "
                f"{problem.strerror}); check its cable and battery, and hardware.options.board"
            ) from None


def _scaled(speed: float, alpha: float, beta: float) -> float:
    """A speed for the board, -1..1. What is no number is zero."""
    if not speed or math.isnan(speed):
        return 0.0
    return min(max(alpha * (speed + math.copysign(beta, speed)), -1.0), 1.0)
