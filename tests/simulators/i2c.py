"""A simulated I2C bus: three chips that answer as their data sheets say, and a record of every transfer.

Behind the interface of smbus2.SMBus, as far as serving/hardware uses it. It turns no motor: `outputs` and `levels` tell
what the chips' pins would do. It is no proof that a real board does the same.
"""

import errno
import os
from typing import Dict, List, Tuple

PCA9685, SCMD, INA219 = 0x60, 0x5D, 0x41


class SimulatedI2C:
    """A bus with some chips on it.

    Attributes:
        writes: (address, register, values) of each write that was acknowledged, in order.
        present: addresses that acknowledge; a test takes one out as a loose cable would.
        registers: address -> register -> value.
    """

    def __init__(self, *present: int) -> None:
        self.present = set(present)
        self.writes: List[Tuple[int, int, Tuple[int, ...]]] = []
        self.registers: Dict[int, Dict[int, int]] = {address: {} for address in (PCA9685, SCMD, INA219)}
        self.closed = False
        self.power_on()

    def power_on(self) -> None:
        """What the chips hold after their supply came on: all motors off, the PCA9685 asleep."""
        outputs = {0x06 + 4 * n + part: 0x10 if part == 3 else 0 for n in range(16) for part in range(4)}
        self.registers[PCA9685] = {0x00: 0x11, 0x01: 0x04, 0xFE: 0x1E, **outputs}
        self.registers[SCMD] = {0x01: 0xA9, 0x1F: 0x11, 0x20: 0x80, 0x21: 0x80, 0x70: 0, 0x76: 0}
        self.registers[INA219] = {0x02: 0}

    def read_byte_data(self, i2c_addr: int, register: int) -> int:
        self._acknowledge(i2c_addr)
        return self.registers[i2c_addr].get(register, 0)

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> List[int]:
        """Of the INA219: registers are words, the high byte first."""
        self._acknowledge(i2c_addr)
        return list(self.registers[i2c_addr].get(register, 0).to_bytes(length, "big"))

    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None:
        self.write_i2c_block_data(i2c_addr, register, [value])

    def write_i2c_block_data(self, i2c_addr: int, register: int, data: List[int]) -> None:
        assert 1 <= len(data) <= 32, "SMBus blocks hold 32 bytes at most"
        assert all(0 <= value <= 255 for value in data)
        self._acknowledge(i2c_addr)
        self.writes.append((i2c_addr, register, tuple(data)))
        if i2c_addr == PCA9685:
            self._write_pca9685(register, data)
        elif len(data) == 1:  # the SCMD's firmware drops longer packets
            self.registers[i2c_addr][register] = data[0]

    def close(self) -> None:
        self.closed = True

    def outputs(self) -> List[float]:
        """The share of the time that each of the PCA9685's 16 outputs is high; asleep, none is."""
        registers = self.registers[PCA9685]
        if registers[0x00] & 0x10:
            return [0.0] * 16
        return [_share(*(registers[0x06 + 4 * n + part] for part in range(4))) for n in range(16)]

    def levels(self) -> Tuple[float, float]:
        """The SCMD's motors A and B, -1..1 with its own sign; 0 while the driver is disabled."""
        registers = self.registers[SCMD]
        a, b = ((registers[register] - 0x80) / 128 for register in (0x20, 0x21))
        return (a, b) if registers[0x70] & 1 else (0.0, 0.0)

    def _write_pca9685(self, register: int, data: List[int]) -> None:
        registers = self.registers[PCA9685]
        steps = 1 if registers[0x00] & 0x20 else 0  # MODE1, AI
        for place, value in enumerate(data):
            at = register + place * steps
            if 0xFA <= at <= 0xFD:  # ALL_LED: loads all outputs
                for n in range(16):
                    registers[0x06 + 4 * n + at - 0xFA] = value
            elif at != 0xFE or registers[0x00] & 0x10:  # PRE_SCALE can be written in sleep alone
                registers[at] = value

    def _acknowledge(self, address: int) -> None:
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if address not in self.present:
            raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))


def _share(on_low: int, on_high: int, off_low: int, off_high: int) -> float:
    if off_high & 0x10:  # full off goes before full on
        return 0.0
    if on_high & 0x10:
        return 1.0
    on, off = on_low | on_high << 8, off_low | off_high << 8
    assert on != off, "the counts of on and off must never be the same"
    return ((off - on) % 4096) / 4096
