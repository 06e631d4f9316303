"""The Jetbot's body: `hardware.kind = "jetbot"`. A camera through GStreamer, two motors and a battery over I2C.

Chosen and set once, in robot.toml. What the camera and the boards are like is in cameras.py, motor_boards.py and
sensors.py. Not yet run on a real robot.
"""

import time
from typing import Any, Dict, Optional

from serving.errors import OperatorError
from serving.hardware import sensors
from serving.hardware.base import Frame, Hardware, MotorsElsewhere, Readings
from serving.hardware.cameras import Camera, csi_source, usb_source
from serving.hardware.motor_boards import Bus, JetbotMotors, open_bus

# The whole picture at 30 frames a second (IMX219, binned by two): 4:3, as the notebooks' 3280x2464 and 816x616.
_MODES = {"csi": (1640, 1232, 30), "usb": (640, 480, 30)}
# From the light to the frame's arrival: exposure, read-out, the buffers of the camera's service. An estimate, not yet
# measured on a robot; too large is the safe side.
_LATENCY_MS = {"csi": 80.0, "usb": 60.0}
_READINGS_HOLD_S = 5.0


class Jetbot(Hardware):
    """A Jetbot.

    Args:
        camera: `csi` (ribbon cable) or `usb` (V4L2).
        device: of a USB camera.
        mjpeg: of a USB camera: asks for JPEGs, for one that gives its mode in no other form.
        sensor: number of a CSI camera.
        width, height, fps: the camera's mode; None: 1640x1232 at 30 for csi, 640x480 at 30 for usb.
        flip: of a CSI camera, 0 to 7 as nvvidconv counts; 2 turns the picture by 180°.
        min_fps: fewer frames a second are a fault.
        latency_ms: from the light falling on the sensor to the frame's arrival; part of every frame's age.
        battery: whether an INA219 at 0x41 tells the battery's voltage.
        i2c_bus: number of the bus of the motor board and the battery.
        bus: an open I2C bus, in place of `i2c_bus`, for this process.
        motors: `board`, `left_alpha`, `right_alpha`, `left_beta`, `right_beta`, as in motor_boards.JetbotMotors.

    Raises:
        OperatorError: an option is not allowed, or the motor board does not answer.
    """

    def __init__(
        self,
        *,
        camera: str = "csi",
        device: str = "/dev/video0",
        mjpeg: bool = False,
        sensor: int = 0,
        width: Optional[int] = None,
        height: Optional[int] = None,
        fps: Optional[int] = None,
        flip: int = 0,
        min_fps: float = 8.0,
        latency_ms: Optional[float] = None,
        battery: bool = True,
        i2c_bus: int = 1,
        bus: Optional[Bus] = None,
        **motors: Any,
    ) -> None:
        if camera not in _MODES:
            raise OperatorError(f"hardware.options.camera is `{camera}`; allowed: {', '.join(_MODES)}")
        usual = _MODES[camera]
        mode = {
            "width": usual[0] if width is None else width,
            "height": usual[1] if height is None else height,
            "fps": usual[2] if fps is None else fps,
        }
        latency_ms = _LATENCY_MS[camera] if latency_ms is None else latency_ms
        numbers = {"flip": flip, "sensor": sensor, "min_fps": min_fps, "latency_ms": latency_ms, "i2c_bus": i2c_bus}
        _in_range({**mode, **numbers})
        if not device.startswith("/dev/") or len(device.split()) != 1:
            raise OperatorError(f"hardware.options.device is `{device}`; it is a path such as /dev/video0")
        source = csi_source(sensor, **mode, flip=flip) if camera == "csi" else usb_source(device, **mode, mjpeg=mjpeg)
        self._motor_options: Dict[str, Any] = {"i2c_bus": i2c_bus, **motors}
        self._bus = open_bus(i2c_bus) if bus is None else bus
        self._has_battery = battery
        self._motors = JetbotMotors(bus=self._bus, **self._motor_options)  # closes the bus when it fails
        try:
            self._camera = Camera(source, latency_ms / 1e3, min_fps)
        except OperatorError:
            self._bus.close()
            raise
        self._readings, self._readings_until_s = Readings(), 0.0

    def motors(self) -> MotorsElsewhere:
        return MotorsElsewhere("serving.hardware.motor_boards:JetbotMotors", self._motor_options)

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest frame. Frames that nobody read meanwhile are gone, never queued."""
        return self._camera.read(timeout_s)

    def drive(self, left: float, right: float) -> None:
        self._motors.drive(left, right)

    def stop(self) -> None:
        self._motors.stop()

    def readings(self) -> Readings:
        """Temperature and battery, read every few seconds: it takes milliseconds. A Jetbot has no bumper."""
        now_s = time.monotonic()
        if now_s >= self._readings_until_s:
            self._readings_until_s = now_s + _READINGS_HOLD_S
            volts = sensors.battery_v(self._bus) if self._has_battery else None
            self._readings = Readings(temperature_c=sensors.hottest_zone_c(), battery_v=volts)
        return self._readings

    def close(self) -> None:
        try:
            self._motors.close()  # and the bus
        finally:
            self._camera.close()


_LIMITS = {
    "width": (16, 8192),
    "height": (16, 8192),
    "fps": (1, 240),
    "flip": (0, 7),
    "sensor": (0, 7),
    "i2c_bus": (0, 255),
    "min_fps": (0, 240),
    "latency_ms": (0, 1000),
}


def _in_range(options: Dict[str, Any]) -> None:
    for name, value in options.items():
        low, high = _LIMITS[name]
        wants = (int, float) if name in ("min_fps", "latency_ms") else int
        if isinstance(value, bool) or not isinstance(value, wants) or not low <= value <= high:
            raise OperatorError(f"hardware.options.{name} is {value!r}; it must be a number from {low} to {high}")
