"""What a Jetbot knows about itself: the temperature of its chip, the voltage of its battery.

A sensor that is not there, or does not answer, gives None; never a zero that passes for a reading.
"""

from pathlib import Path
from typing import Optional

from serving.hardware.motor_boards import Bus

THERMAL = Path("/sys/class/thermal")
# Jetson boards have no sensor there and report 100 °C for ever (Jetson Linux Developer Guide, thermal zones).
_NO_SENSOR = "PMIC-Die"
_PLAUSIBLE_C = (-40.0, 150.0)

INA219_ADDRESS = 0x41
# Data sheet SBOS448: bus voltage in bits 15..3 at 4 mV; after power-up it measures by itself, up to 32 V.
_BUS_VOLTAGE_REGISTER = 0x02
_BUS_VOLTAGE_LSB_V = 0.004


def hottest_zone_c(folder: Path = THERMAL) -> Optional[float]:
    """The hottest of the kernel's thermal zones, in degrees Celsius."""
    found = []
    for zone in folder.glob("thermal_zone*"):
        try:
            if (zone / "type").read_text().strip() == _NO_SENSOR:
                continue
            celsius = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):  # a zone that is switched off refuses to be read
            continue
        if _PLAUSIBLE_C[0] <= celsius <= _PLAUSIBLE_C[1]:
            found.append(celsius)
    return max(found, default=None)


def battery_v(bus: Bus, address: int = INA219_ADDRESS) -> Optional[float]:
    """The battery's voltage from an INA219, as Waveshare's Jetbot has one."""
    try:
        high, low = bus.read_i2c_block_data(address, _BUS_VOLTAGE_REGISTER, 2)
    except OSError:
        return None
    return ((high << 8 | low) >> 3) * _BUS_VOLTAGE_LSB_V or None  # 0 V runs no robot: nothing is connected there
