"""The daemon's side of an engine: starts the worker process, hands it frames, and never waits for it too long.

One request at a time; the frame travels in shared memory, the rest in messages of a few bytes. What the network's
answer means is not here (decide.py), nor whether an engine is fit to drive (check.py).
"""

import contextlib
import logging
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn, Optional

import msgspec
import numpy as np

from serving import preprocess
from serving.config import EngineSettings
from serving.contracts.releases import EngineKey, Target
from serving.engine import worker
from serving.errors import JetloopError, OperatorError, RejectedError

log = logging.getLogger("engine")

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_END_TIMEOUT_S = 1.0  # an idle worker leaves in milliseconds
# An attentive wait is awake so long before the answer is due, and after: what it may cost of a core, a frame.
_AWAKE_BEFORE_S, _AWAKE_AFTER_S = 0.0002, 0.0001
# Ours are not JetPack's: they would lead its interpreter to our packages.
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__")


_BACKENDS = {"ort": "ort_backend.py", "trt": "tensorrt_backend.py", "trtrtx": "tensorrt_backend.py"}


class EngineFailed(JetloopError):
    """The engine gave no usable answer; it has been ended.

    Attributes:
        cause: `hung`, `crashed`, `not-loaded`, `bad-output` or `memory`.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"the engine {_SAID[cause]}: {detail}")
        self.cause = cause


_SAID = {
    "hung": "hangs",
    "crashed": "crashed",
    "not-loaded": "cannot be loaded",
    "bad-output": "gave a useless answer",
    "memory": "grew too large",
}


class Engine:
    """One engine in a worker process of its own, loaded and warm. Used by one thread at a time.

    Attributes:
        runtime: what runs it, such as `onnxruntime 1.28.0`.
        pid: of the worker.
        run_ms: time of the last inference, within the worker.
    """

    def __init__(self, engine_file: Path, settings: EngineSettings, key: Optional[EngineKey] = None) -> None:
        """Starts the worker and waits until the engine is loaded and warm.

        Args:
            engine_file: the file that the runtime of `settings.target` loads.
            settings: the table `[engine]` of robot.toml.
            key: what the engine was built for; None: for any machine of the target.

        Raises:
            OperatorError: the interpreter is not there, or cannot import what the target needs.
            RejectedError: this machine is another than the key says; nothing of the engine was loaded.
            EngineFailed: the engine did not load in time, or not at all.
        """
        self.run_ms = math.nan
        self._number = 0
        self._begun_s = self._usual_s = 0.0  # time.monotonic() of begin(); how long answers take, smoothed
        # With no core to spare for the daemon, waiting actively would take one from the inference.
        self._spare_core = len(os.sched_getaffinity(0)) > settings.threads
        self._condemned = ""  # why it was ended from outside, before an inference found that out
        self._reply = bytearray(worker.MAX_REPLY_BYTES)
        self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_end, tempfile.TemporaryFile(dir=_memory_folder()) as shared:
            shared.truncate(preprocess.FRAME_BYTES)
            self._shared = mmap.mmap(shared.fileno(), preprocess.FRAME_BYTES)
            # (224, 224, 3) uint8: the worker reads it, only this class writes it
            self._frame = np.frombuffer(self._shared, dtype=np.uint8).reshape(preprocess.FRAME_SHAPE)
            try:
                self._process = _start(engine_file, settings, key, far_end.fileno(), shared.fileno())
            except OperatorError:
                self._channel.close()
                raise
        self._python = settings.python or sys.executable
        self.pid = self._process.pid
        _, _, self.runtime = self._receive(0, worker.READY, settings.start_timeout_s)

    def infer(self, pixels: np.ndarray, timeout_s: float) -> np.ndarray:
        """One inference: begin() and result()."""
        self.begin(pixels)
        return self.result(timeout_s)

    def begin(self, pixels: np.ndarray) -> None:
        """Hands a frame to the worker, whose process computes while this one does something else.

        Args:
            pixels: (224, 224, 3) uint8, RGB.

        Raises:
            EngineFailed: the worker is gone.
            ValueError: `pixels` is no frame.
        """
        if pixels.shape != preprocess.FRAME_SHAPE or pixels.dtype != np.uint8:
            raise ValueError(f"a frame is {preprocess.FRAME_SHAPE} uint8, this is {pixels.shape} {pixels.dtype}")
        np.copyto(self._frame, pixels)
        self._number += 1
        self._begun_s = time.monotonic()
        try:
            self._channel.send(worker.REQUEST.pack(self._number))
        except OSError:
            self._fail_ended()

    def result(self, timeout_s: float, attentive: bool = False) -> np.ndarray:
        """Waits for what begin() began.

        Args:
            timeout_s: a worker that takes longer is hung, and ended.
            attentive: be awake when the answer is due, for 0.3 ms of a core at most: a core that sleeps until the
                answer is there takes 0.05 to 0.1 ms to come back.

        Returns:
            (2,) float32 logits, blocked first, finite.

        Raises:
            EngineFailed: no answer, or none that is finite. The worker has been ended.
        """
        awake = attentive and self._spare_core and self._usual_s < timeout_s
        blocked, free, _ = self._receive(self._number, worker.OK, timeout_s, awake)
        took_s = time.monotonic() - self._begun_s
        # One answer held up by something else must not make the next ones unexpected.
        self._usual_s += min(took_s - self._usual_s, _AWAKE_BEFORE_S) / 8 if self._usual_s else took_s
        if not (math.isfinite(blocked) and math.isfinite(free)):
            self._fail("bad-output", f"logits {blocked} and {free}")
        return np.array((blocked, free), dtype=np.float32)

    def close(self) -> None:
        """Lets the worker go: it leaves by itself, or is ended. May be called twice."""
        self._channel.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the worker at once. May be called twice."""
        self._channel.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process stuck in the kernel ends when it can
            self._process.wait(_END_TIMEOUT_S)

    def memory_mb(self) -> float:
        """What the worker holds in memory now; 0 when it has ended. Any thread may ask."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as statm:
                return int(statm.read().split()[1]) * _PAGE_BYTES / 1e6
        except (OSError, IndexError):
            return 0.0

    def end_if_over(self, limit_mb: float) -> None:
        """Ends a worker that holds more memory; the inference under way, or the next one, says why. Any thread."""
        held_mb = self.memory_mb()
        if held_mb > limit_mb and not self._condemned:
            self._condemned = f"its worker holds {held_mb:.0f} MB, engine.max_memory_mb allows {limit_mb:g}"
            self._process.kill()

    def _attend(self) -> None:
        """Sleeps until shortly before the answer is due, then looks for it again and again, for a moment."""
        due_s = self._begun_s + self._usual_s
        channel, nothing = (self._channel.fileno(),), ()
        if channel[0] < 0:
            return  # another thread has just let the engine go, as the next call finds
        asleep_s = max(due_s - _AWAKE_BEFORE_S - time.monotonic(), 0.0)
        there = select.select(channel, nothing, nothing, asleep_s)[0]
        while not there and time.monotonic() < due_s + _AWAKE_AFTER_S:
            there = select.select(channel, nothing, nothing, 0)[0]

    def _receive(
        self, number: int, status: int, timeout_s: float, attentive: bool = False
    ) -> "tuple[float, float, str]":
        """Waits for the answer to a request: the two logits and the text that came with them."""
        deadline_s = time.monotonic() + timeout_s
        try:
            if attentive:
                self._attend()
            self._channel.settimeout(max(deadline_s - time.monotonic(), 0.001))  # 0 would be: do not wait at all
            size = self._channel.recv_into(self._reply)
        except TimeoutError:
            self._fail("hung", f"no answer in {timeout_s * 1e3:.0f} ms")
        except OSError:
            self._fail_ended()
        if size < worker.REPLY.size:
            self._fail_ended()
        got_number, got_status, blocked, free, self.run_ms = worker.REPLY.unpack_from(self._reply)
        text = self._reply[worker.REPLY.size : size].decode("utf-8", "replace") if size > worker.REPLY.size else ""
        if got_status == worker.NO_RUNTIME:
            self.kill()
            raise OperatorError(f"engine.python is `{self._python}`, which cannot run this target: {text}")
        if got_status == worker.WRONG_KEY:
            self.kill()
            raise RejectedError(text)
        if got_status == worker.BAD_OUTPUT:
            self._fail("bad-output", text)
        if got_status == worker.FAILED:
            self._fail("not-loaded" if status == worker.READY else "crashed", text)
        if (got_number, got_status) != (number, status):
            self._fail("bad-output", f"reply {got_number} ({got_status}) to request {number} ({status})")
        return blocked, free, text

    def _fail(self, cause: str, detail: str) -> NoReturn:
        self.kill()
        raise EngineFailed(cause, detail)

    def _fail_ended(self) -> NoReturn:
        if self._condemned:
            self._fail("memory", self._condemned)
        self._fail("crashed", self._exit_text())

    def _exit_text(self) -> str:
        """How the worker ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)
        code = self._process.returncode
        if code is None:
            return "its worker closed the channel"
        return f"its worker was ended by {signal.Signals(-code).name}" if code < 0 else f"its worker ended with {code}"


def _start(
    engine_file: Path, settings: EngineSettings, key: Optional[EngineKey], channel_fd: int, frame_fd: int
) -> "subprocess.Popen[bytes]":
    python = settings.python or sys.executable
    built_for = msgspec.json.encode(key).decode() if key else "{}"
    arguments = [str(backend_file(settings.target)), str(engine_file), built_for, str(settings.threads)]
    try:
        return subprocess.Popen(
            [python, worker.__file__, *arguments, str(channel_fd), str(frame_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel_fd, frame_fd),
            env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
        )
    except OSError as problem:
        raise OperatorError(f"engine.python is `{python}`, which cannot be started: {problem.strerror}") from None


def backend_file(target: str) -> Path:
    """The module that runs engines of a target."""
    return Path(worker.__file__).with_name(_BACKENDS[Target.parse(target).runtime])


def _memory_folder() -> Optional[str]:
    """Where a file is memory alone. The frame's file has no name there, so that no crash leaves one behind."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
