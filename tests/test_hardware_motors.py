"""The Jetbot's motor boards, register by register, on a simulated I2C bus (no real board was at hand)."""

import math
import subprocess
import sys
from typing import Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import OperatorError
from serving.hardware.motor_boards import BOARDS, JetbotMotors
from tests.simulators.i2c import INA219, PCA9685, SCMD, SimulatedI2C

FULL_ON, FULL_OFF, HALF = (0, 0x10, 0, 0), (0, 0, 0, 0x10), (0, 0, 0, 0x08)
ADDRESS = {"waveshare": PCA9685, "adafruit": PCA9685, "sparkfun": SCMD}


def opened(board: str, **options: float) -> Tuple[SimulatedI2C, JetbotMotors]:
    bus = SimulatedI2C(ADDRESS[board])
    motors = JetbotMotors(board, bus=bus, **options)  # type: ignore[arg-type]
    return bus, motors


def speeds(board: str, bus: SimulatedI2C) -> Tuple[float, float]:
    """What the wheels would do, forward positive, from the pins that the Jetbot project names."""
    if board == "sparkfun":
        a, b = bus.levels()
        return -a, -b
    pins = bus.outputs()
    tb6612 = (pins[8] * (pins[9] - pins[10]), pins[13] * (pins[12] - pins[11]))
    if board == "waveshare":
        assert (pins[1] - pins[0], pins[2] - pins[3]) == tb6612
    return tb6612


def test_adafruit_is_set_up_as_its_data_sheet_asks() -> None:
    """Motors off first, then 1600 Hz set in sleep, then awake with auto-increment."""
    bus, _ = opened("adafruit")
    assert bus.writes == [
        (0x60, 0xFD, (0x10,)),
        (0x60, 0x01, (0x04,)),
        (0x60, 0x00, (0x10,)),
        (0x60, 0xFE, (3,)),
        (0x60, 0x00, (0x20,)),
    ]
    assert bus.registers[PCA9685][0xFE] == 3


def test_adafruit_sets_both_motors_in_one_transfer() -> None:
    """Forward is IN2 high and IN1 low, as the Jetbot project drives the board; both wheels change at once."""
    bus, motors = opened("adafruit")
    bus.writes.clear()
    motors.drive(0.5, -1.0)
    block = (*HALF, *FULL_ON, *FULL_OFF, *FULL_ON, *FULL_OFF, *FULL_ON)
    assert bus.writes == [(0x60, 0x06 + 4 * 8, block)]


def test_waveshare_feeds_its_own_pins_too() -> None:
    """Outputs 1 and 2 are forward, 0 and 3 backward, left and right."""
    bus, motors = opened("waveshare")
    bus.writes.clear()
    motors.drive(0.5, -1.0)
    assert bus.writes[0] == (0x60, 0x06, (*FULL_OFF, *HALF, *FULL_OFF, *FULL_ON))
    assert len(bus.writes) == 2


def test_sparkfun_is_set_up_with_its_own_watchdog() -> None:
    """Disabled and at rest first; then, 200 ms without a write, the board itself lets the motors rest."""
    bus, motors = opened("sparkfun")
    assert bus.writes == [(0x5D, 0x70, (0,)), (0x5D, 0x20, (0x80,)), (0x5D, 0x21, (0x80,)), (0x5D, 0x76, (20,))]
    bus.writes.clear()
    motors.drive(1.0, -0.5)
    assert bus.writes == [(0x5D, 0x20, (0x00,)), (0x5D, 0x21, (0xC0,)), (0x5D, 0x70, (1,))]
    motors.drive(-1.0, 0.0)
    assert bus.writes[-3:] == [(0x5D, 0x20, (0xFF,)), (0x5D, 0x21, (0x80,)), (0x5D, 0x70, (1,))]


@pytest.mark.parametrize("board", BOARDS)
def test_stop_begins_with_the_write_that_takes_the_power_off(board: str) -> None:
    """One transfer is enough: what comes after it only clears the levels."""
    bus, motors = opened(board)
    motors.drive(1.0, 1.0)
    bus.writes.clear()
    motors.stop()
    assert bus.writes[0] == {PCA9685: (0x60, 0xFD, (0x10,)), SCMD: (0x5D, 0x70, (0,))}[ADDRESS[board]]
    assert speeds(board, bus) == (0, 0)


@pytest.mark.parametrize("board", BOARDS)
@settings(max_examples=60, deadline=None)
@given(left=st.floats(), right=st.floats())
def test_wheels_turn_as_told_whatever_they_are_told(board: str, left: float, right: float) -> None:
    """Any two numbers give the nearest allowed speeds; what is no number gives rest."""
    bus, motors = opened(board)
    motors.drive(left, right)
    for told, done in zip((left, right), speeds(board, bus), strict=True):
        expected = 0.0 if math.isnan(told) else min(max(told, -1.0), 1.0)
        assert done == pytest.approx(expected, abs=1 / 128)


@pytest.mark.parametrize("board", BOARDS)
def test_factors_make_unequal_motors_run_alike(board: str) -> None:
    """alpha scales, beta helps a motor over its dead band in either direction, and zero stays zero."""
    bus, motors = opened(board, left_alpha=-0.5, right_beta=0.25)
    motors.drive(0.5, -0.5)
    assert speeds(board, bus) == pytest.approx((-0.25, -0.75), abs=1e-6)
    motors.drive(0.0, 0.0)
    assert speeds(board, bus) == (0, 0)


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_that_does_not_answer_is_named(board: str) -> None:
    """At the start, in drive() and in stop(): one line that says what to look at."""
    with pytest.raises(OperatorError, match=r"0x(60|5d) does not answer .*check its cable"):
        JetbotMotors(board, bus=SimulatedI2C())
    bus, motors = opened(board)
    bus.present.clear()
    with pytest.raises(OperatorError, match="drive"):
        motors.drive(1.0, 1.0)
    with pytest.raises(OperatorError, match="stop"):
        motors.stop()


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_that_lost_its_power_drives_again(board: str) -> None:
    """After an I2C error the board is set up anew, for it may have forgotten everything."""
    bus, motors = opened(board)
    motors.drive(1.0, 1.0)
    bus.present.clear()
    with pytest.raises(OperatorError):
        motors.drive(1.0, 1.0)
    bus.power_on()
    bus.present.add(ADDRESS[board])
    motors.drive(0.5, 1.0)
    assert speeds(board, bus) == (0.5, 1.0)


def test_another_chip_at_the_address_is_not_driven() -> None:
    """A chip that answers, but is not the board, is refused with what to do."""
    bus = SimulatedI2C(SCMD)
    bus.registers[SCMD][0x01] = 0x55
    with pytest.raises(OperatorError, match=r"ID reads 0x55.*hardware\.options\.board"):
        JetbotMotors("sparkfun", bus=bus)
    assert bus.closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"board": "l298"}, "board is `l298`; allowed: waveshare, adafruit, sparkfun"),
        ({"left_alpha": 3}, "left_alpha is 3; it must be a number from -2 to 2"),
        ({"right_beta": -0.1}, "right_beta is -0.1"),
        ({"left_alpha": math.nan}, "left_alpha is nan"),
        ({"i2c_bus": 251}, "/dev/i2c-251 cannot be opened|smbus2 is not installed"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict, message: str) -> None:
    """In one line, before anything is driven."""
    with pytest.raises(OperatorError, match=message):
        JetbotMotors(**options)


def test_the_motors_come_without_numpy() -> None:
    """The motor guard opens them in a small process: no numpy, no camera."""
    code = "import sys, serving.hardware.motor_boards; print({'numpy', 'serving.hardware.cameras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_battery_is_read_or_none() -> None:
    """12.0 V as the INA219 holds it; no chip, or nothing connected to it, is None and not zero."""
    from serving.hardware.sensors import battery_v

    bus = SimulatedI2C(INA219)
    assert battery_v(bus) is None
    bus.registers[INA219][0x02] = 3000 << 3 | 0b010  # the low bits are flags
    assert battery_v(bus) == pytest.approx(12.0)
    bus.present.clear()
    assert battery_v(bus) is None
