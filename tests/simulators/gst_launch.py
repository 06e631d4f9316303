"""A stand-in for gst-launch-1.0 that fails in every way a camera does: `python gst_launch.py WAY ARGUMENTS...`.

It writes frames, each one message, to the descriptor that the pipeline names in `fdsink fd=N`; WAY says what is wrong.
"""

import re
import signal
import socket
import sys
import time

FRAME_BYTES = 224 * 224 * 3
FPS = 30.0


def frame(number: int, brightness: int = 100) -> bytes:
    """A picture that differs from the one before, as a sensor's noise makes it: red, then green, then blue."""
    return bytes(((brightness + number) % 200 + 20, 0, 1)) * (FRAME_BYTES // 3)


def main(way: str, arguments: "list[str]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    found = re.search(r"fd=(\d+)", " ".join(arguments))
    assert found
    channel = socket.socket(fileno=int(found[1]))
    if way == "absent":
        sys.exit("Setting pipeline to PAUSED\nERROR: from element v4l2src0: Cannot identify device '/dev/video0'.")
    if way == "mute":
        time.sleep(60)
    number = 0
    while True:
        number += 1
        picture = frame(number)
        if way == "frozen" and number > 5:
            picture = frame(5)
        elif way == "black":
            picture = bytes((number % 8,)) * FRAME_BYTES
        elif way == "small":
            picture = picture[: 160 * 120 * 3]
        elif way == "large":
            picture += picture[:100]
        elif way == "unplugged" and number > 5:
            sys.exit("ERROR: from element v4l2src0: Could not read from resource.")
        channel.send(picture)
        time.sleep(1 / (5.0 if way == "slow" else FPS))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
