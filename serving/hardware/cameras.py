"""A camera through GStreamer: frames from a `gst-launch-1.0` process, the newest first, and what is wrong with them.

A process and not a library, for what a Jetson has: the wheels of opencv-python are built without GStreamer, and
JetPack's own cv2 can be imported by JetPack's Python alone, not by the daemon's. `gst-launch-1.0` comes with JetPack, a
crash of the camera's driver ends it and not the daemon, and colours are asked for by name (RGB), where the notebooks
took what came.

Frames come through a Unix socket that keeps messages whole (SOCK_SEQPACKET): a frame is there or not, never in part,
and one of another size is seen as such. Whether what a frame shows can be true is in frame_judge.py.
"""

import contextlib
import logging
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from typing import List, NamedTuple, Optional

import numpy as np

from serving import preprocess
from serving.errors import OperatorError
from serving.hardware.base import Frame
from serving.hardware.frame_judge import Judge

log = logging.getLogger("camera")

LAUNCHER = "gst-launch-1.0"
_FIRST_FRAME_S = 10.0  # the Jetson's camera service takes a few seconds to start
_SILENT_S = 2.0  # then something is wrong that waiting does not mend
_BACKOFF_S = (0.5, 10.0)  # first and longest pause before the camera is opened again
_END_TIMEOUT_S = 2.0
_WAKE_S = 0.1  # while no frame comes, to see whether there is to be an end


class Source(NamedTuple):
    """Where frames come from.

    Attributes:
        elements: of the pipeline, up to any raw video; `to_frames` appends what makes frames of it.
        fps: frames a second that it should give.
        hint: what a person should look at when no frames come.
    """

    elements: str
    fps: float
    hint: str


def csi_source(sensor: int, width: int, height: int, fps: int, flip: int) -> Source:
    """A camera on the Jetson's ribbon cable, as the Jetbot project opens it: the chip scales, the processor does not.

    Args:
        sensor: number of the camera.
        width, height, fps: a mode of the sensor.
        flip: of nvvidconv: 0 as it comes, 2 turned by 180°.
    """
    small = f"width={preprocess.WIDTH},height={preprocess.HEIGHT}"
    return Source(
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},format=NV12,framerate={fps}/1 ! "
        f"nvvidconv flip-method={flip} ! video/x-raw,{small},format=BGRx",
        fps,
        "check the ribbon cable (robot switched off), and `systemctl restart nvargus-daemon`",
    )


def usb_source(device: str, width: int, height: int, fps: int, mjpeg: bool) -> Source:
    """A V4L2 camera, such as any webcam, uncompressed or as a row of JPEGs."""
    mode = f"width={width},height={height},framerate={fps}/1"
    return Source(
        f"v4l2src device={device} ! " + (f"image/jpeg,{mode} ! jpegdec" if mjpeg else f"video/x-raw,{mode}"),
        fps,
        f"check the cable and `v4l2-ctl --device {device} --list-formats-ext`",
    )


def to_frames(source: Source, descriptor: int) -> List[str]:
    """The command that writes the source's frames, (224, 224, 3) RGB, to a file descriptor.

    Its queue of one keeps the newest frame while the reader is late.
    """
    frames = f"video/x-raw,format=RGB,width={preprocess.WIDTH},height={preprocess.HEIGHT}"
    pipeline = (
        f"{source.elements} ! queue max-size-buffers=1 leaky=downstream ! videoconvert ! videoscale ! {frames} ! "
        f"fdsink fd={descriptor} sync=false"
    )
    return [LAUNCHER, "--quiet", *pipeline.split()]


class Camera:
    """Reads frames in a thread of its own, opens the camera again when it fails, and says what is wrong.

    Args:
        source: where frames come from.
        latency_s: from the light falling on the sensor to the frame's arrival here.
        min_fps: fewer frames a second are a fault.

    Raises:
        OperatorError: GStreamer's launcher is not installed.
    """

    def __init__(self, source: Source, latency_s: float, min_fps: float) -> None:
        if shutil.which(LAUNCHER) is None:
            raise OperatorError(f"{LAUNCHER} is not installed; `apt-get install gstreamer1.0-tools` adds it")
        self._source = source
        self._latency_s = latency_s
        self._judge = Judge(min_fps)
        self._trouble = ""  # why no frame counts now
        # Three buffers in turn: one is written, one is the newest, one is in the caller's hands. One byte more than a
        # frame, to see one that is too large.
        self._writing, self._newest, self._held = (np.zeros(preprocess.FRAME_BYTES + 1, np.uint8) for _ in range(3))
        self._captured_at: Optional[float] = None  # of the newest frame; None: it was read, or there is none
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def read(self, timeout_s: float) -> Optional[Frame]:
        """Waits for the newest frame; None when none came in time.

        Raises:
            OperatorError: something is wrong with the camera; it is seen to meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._captured_at is not None or self._trouble, timeout_s)
            if self._trouble:
                raise OperatorError(self._trouble)
            if self._captured_at is None:
                return None
            self._held, self._newest = self._newest, self._held
            captured_at, self._captured_at = self._captured_at, None
        return Frame(self._held[:-1].reshape(preprocess.FRAME_SHAPE), captured_at)

    def close(self) -> None:
        """Lets the camera go."""
        self._closing.set()
        self._thread.join(timeout=_END_TIMEOUT_S + 1.0)

    def _run(self) -> None:
        pause_s = _BACKOFF_S[0]
        while not self._closing.is_set():
            began_s = time.monotonic()
            reason = self._read_until_it_fails()
            if self._closing.is_set():
                return
            if time.monotonic() - began_s > 2 * _BACKOFF_S[1]:
                pause_s = _BACKOFF_S[0]  # it ran well for a while
            self._tell(reason, again_in_s=pause_s)
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _BACKOFF_S[1])

    def _read_until_it_fails(self) -> str:
        """One life of the camera's process. Returns what ended it."""
        self._judge.begin()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, tempfile.TemporaryFile() as said:
            # The kernel doubles it: room for one frame and the next, whatever this machine's default is.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, preprocess.FRAME_BYTES)
            try:
                process = subprocess.Popen(
                    to_frames(self._source, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the daemon, which then ends this
                )
            except OSError as problem:
                return f"{LAUNCHER} cannot be started: {problem.strerror}"
            theirs.close()
            try:
                reason = self._receive(ours)
            finally:
                _end(process)
            said.seek(0)
            return reason or f"no camera: {last_error(said.read().decode('utf-8', 'replace'))}"

    def _receive(self, channel: socket.socket) -> str:
        """Takes frames until something is wrong that opening the camera again may mend; "" when its process ended."""
        waits = select.poll()
        waits.register(channel, select.POLLIN)
        arrived_s, allowed_s = time.monotonic(), _FIRST_FRAME_S
        while not self._closing.is_set():
            looked_s = time.monotonic()
            waited = not waits.poll(0)
            while not waits.poll(_WAKE_S * 1e3):
                if self._closing.is_set():
                    return ""
                if time.monotonic() - looked_s > allowed_s:
                    return f"no frame for {allowed_s:.0f} s"
            # A frame that lay there already may be as old as our last look: this thread, or all of us, was held up.
            arrived_s = time.monotonic() if waited else arrived_s
            size = channel.recv_into(self._writing.data)
            if size == 0:
                return ""
            if size != preprocess.FRAME_BYTES:
                return f"a frame of {size} bytes, not {preprocess.FRAME_BYTES}: wrong size or format"
            allowed_s = _SILENT_S
            fault, lasting = self._judge.look(self._writing[:-1], arrived_s)
            if lasting:
                return fault
            self._take(arrived_s - self._latency_s, fault)
        return ""

    def _take(self, captured_at: float, fault: str) -> None:
        """The frame just written becomes the newest, or, with a fault, none is there."""
        if fault:
            self._tell(fault)
            return
        with self._changed:
            if self._trouble:
                log.info("the camera is well again")
                self._trouble = ""
            self._writing, self._newest = self._newest, self._writing
            self._captured_at = captured_at
            self._changed.notify()

    def _tell(self, reason: str, again_in_s: Optional[float] = None) -> None:
        again = "" if again_in_s is None else "; opened again by itself"
        trouble = f"the camera: {reason}; {self._source.hint}{again}"
        with self._changed:
            if trouble != self._trouble:
                log.error("%s", trouble)
            self._trouble, self._captured_at = trouble, None
            self._changed.notify()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)  # lets the pipeline close the camera; it is left to the driver otherwise
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it ends when it can
            process.wait(_END_TIMEOUT_S)


def last_error(said: str) -> str:
    """The one line of GStreamer's words that tells most."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "rror" in line]
    return (errors or lines or ["its process ended without a word"])[0][:300]
