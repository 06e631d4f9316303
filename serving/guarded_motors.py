"""The daemon's side of the motor guard: sends commands to that process, watches it, and starts it again.

While no guard runs nothing moves: the motors are zeroed from here, and every drive() is refused. What the guard does is
in motor_guard.py; when a decision is too old to move anything, in motors.py.
"""

import contextlib
import json
import logging
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Optional, Tuple

from serving import motor_guard
from serving.errors import OperatorError
from serving.hardware.base import Hardware, MotorsElsewhere

log = logging.getLogger("motors")

_START_TIMEOUT_S = 5.0  # it imports little, but a booting board reads it from an SD card
_ANSWER_TIMEOUT_S = 0.1  # a board on I2C takes 2 ms
_RESTART_PAUSE_S = 0.5
# The guard's deadline comes this much before the 200 ms are over: waking up and writing to the board take time too.
_WAY_TO_MOTORS_S = 0.01


def _nobody_listens(_: Dict[str, Any]) -> None:
    """In the place of a listener."""


class GuardedMotors:
    """Motors that another process drives. One thread calls drive(), any thread stop().

    Attributes:
        pid: of the guard; another one after it had to be started again.
    """

    def __init__(
        self,
        where: MotorsElsewhere,
        zero_here: Callable[[], None],
        max_age_s: float,
        restarted: Callable[[Dict[str, Any]], None] = _nobody_listens,
    ) -> None:
        """Starts the guard, which stops the motors.

        Args:
            where: how the guard opens the motors.
            zero_here: stops the motors from this process, for the moment in which there is no guard.
            max_age_s: how long a command may drive.
            restarted: told when another guard runs after one ended: `cause` (`ended` or `hung`), `detail`, and
                `away_s`, how long there was none. On a thread of this class; it must not wait.

        Raises:
            OperatorError: the motors cannot be opened, or do not answer.
        """
        self._argument = json.dumps({"factory": where.factory, "options": where.options, "path": sys.path})
        self._zero_here = zero_here
        self._command_s = max(max_age_s - _WAY_TO_MOTORS_S, max_age_s / 2)
        self._lock = threading.Lock()  # of the channel and the numbers
        self._closing = threading.Event()
        self._reply = bytearray(motor_guard.REPLY.size + motor_guard.MAX_TEXT_BYTES)
        self._sent = self._done = 0  # numbers of commands
        self._problem = ""  # what went wrong with the command done last
        self._waiting_since_s = 0.0  # time.monotonic() of the oldest command that is not done
        self._channel: Optional[socket.socket] = None  # None: no guard runs
        self._restarted = restarted
        self._hung = False  # it was ended because it did not answer
        self._complaint = ""  # what the log was told last about a guard that does not start
        self._start()
        self._thread = threading.Thread(target=self._watch, name="motor-guard", daemon=True)
        self._thread.start()

    @classmethod
    def of(
        cls, hardware: Hardware, max_age_s: float, restarted: Callable[[Dict[str, Any]], None] = _nobody_listens
    ) -> "Optional[GuardedMotors]":
        """The guard of a body's motors; None when only this process can reach them."""
        where = hardware.motors()
        return None if where is None else cls(where, hardware.stop, max_age_s, restarted)

    def drive(self, left: float, right: float) -> None:
        """Sends a command; does not wait for the board.

        Raises:
            OperatorError: there is no guard, it hangs, or the motors did not do what they were told before.
        """
        with self._lock:
            self._read_replies()
            problem, self._problem = self._problem, ""
            if problem:
                raise OperatorError(problem)
            if self._done != self._sent and time.monotonic() - self._waiting_since_s > _ANSWER_TIMEOUT_S:
                self._end_hung()
            self._send(left, right, time.monotonic() + self._command_s)

    def stop(self) -> None:
        """Motors to zero; returns when they are.

        Raises:
            OperatorError: the motors do not answer.
        """
        with self._lock:
            if self._channel is not None:
                with contextlib.suppress(OperatorError):  # it has just ended, or hangs: this process has to
                    self._send(0.0, 0.0, 0.0)
                if self._stopped():
                    return
        self._zero_here()

    def close(self) -> None:
        """Ends the guard, which leaves the motors at zero."""
        self._closing.set()
        self._let_go()
        self._thread.join(timeout=1.0)  # it may be starting another just now
        self._let_go()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_TIMEOUT_S * 3)

    def _let_go(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._channel is not None:
                self._channel.shutdown(socket.SHUT_RDWR)

    # The channel. The caller holds the lock.

    def _send(self, left: float, right: float, deadline_s: float) -> None:
        if self._channel is None:
            raise OperatorError("the motor guard is being started again")
        if self._done == self._sent:
            self._waiting_since_s = time.monotonic()
        self._sent += 1
        try:
            self._channel.send(motor_guard.COMMAND.pack(self._sent, left, right, deadline_s), socket.MSG_DONTWAIT)
        except BlockingIOError:  # hundreds of commands wait: it hangs, as the next drive() will find
            raise OperatorError("the motor guard is busy") from None
        except OSError:
            raise OperatorError("the motor guard has ended") from None

    def _read_replies(self) -> None:
        """Takes in what the guard answered, without waiting."""
        while self._channel is not None and self._done != self._sent:
            try:
                size = self._channel.recv_into(self._reply, 0, socket.MSG_DONTWAIT)
            except OSError:  # nothing more to read; that the guard is gone shows at the next send
                return
            if not size:
                return
            number, status = motor_guard.REPLY.unpack_from(self._reply)
            self._done, self._problem = max(self._done, number), ""
            if status != motor_guard.OK:
                text = self._reply[motor_guard.REPLY.size : size].decode("utf-8", "replace")
                self._problem = text or "the motors do not answer"

    def _stopped(self) -> bool:
        """Waits until the guard did the last command; False when it is gone or does not answer, and so ended.

        Raises:
            OperatorError: the motors do not answer.
        """
        assert self._channel is not None
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while self._done != self._sent:
            left_ms = (deadline_s - time.monotonic()) * 1e3
            events = poller.poll(left_ms) if left_ms > 0 else []
            if not events:
                self._kill_hung()
                return False
            self._read_replies()
            if self._done != self._sent and events[0][1] & (select.POLLHUP | select.POLLERR):
                return False
        problem, self._problem = self._problem, ""
        if problem:
            raise OperatorError(problem)
        return True

    def _kill_hung(self) -> None:
        self._hung = True
        self._process.kill()

    def _end_hung(self) -> None:
        self._kill_hung()
        raise OperatorError(f"the motor guard does not answer within {_ANSWER_TIMEOUT_S * 1e3:.0f} ms")

    # The process.

    def _start(self) -> None:
        """Starts a guard and waits until it has stopped the motors.

        Raises:
            OperatorError: it does not start, or the motors do not answer.
        """
        channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", motor_guard.__file__, self._argument]
        with far_end:
            process = subprocess.Popen(command, stdin=far_end.fileno())
        channel.settimeout(_START_TIMEOUT_S)
        try:
            answer = channel.recv(len(self._reply))
        except TimeoutError:
            answer = b""
        status = motor_guard.REPLY.unpack_from(answer)[1] if answer else motor_guard.FAILED
        if status != motor_guard.OK:
            process.kill()
            process.wait()
            channel.close()
            text = answer[motor_guard.REPLY.size :].decode("utf-8", "replace")
            raise OperatorError(f"the motor guard does not start: {text or 'it gave no answer'}")
        channel.settimeout(None)
        with self._lock:
            self._process, self._channel, self._done = process, channel, self._sent
        self.pid = process.pid

    def _watch(self) -> None:
        """Waits for the end of the guard; stops the motors then, and starts another."""
        while self._channel is not None:
            poller = select.poll()
            poller.register(self._channel, 0)  # the end of the other side is reported unasked
            poller.poll()
            with self._lock:
                self._channel.close()
                self._channel = None
            if self._closing.is_set():
                return
            gone_s = time.monotonic()
            self._zero_until_it_works()
            cause, detail = self._how_it_ended()
            log.error("%s; motors to zero, starting another", detail)
            while self._channel is None and not self._closing.is_set():
                self._start_or_wait()
            if self._closing.is_set():
                return
            self._restarted({"cause": cause, "detail": detail, "away_s": time.monotonic() - gone_s})

    def _zero_until_it_works(self) -> None:
        complained = False
        while not self._closing.is_set():
            try:
                self._zero_here()
                return
            except Exception as problem:  # whatever the bus does, the answer is to try again
                if not complained:
                    log.error("the motors do not stop, trying on: %s", problem)
                complained = True
                self._closing.wait(motor_guard.RETRY_S)

    def _start_or_wait(self) -> None:
        try:
            self._start()
            log.info("a motor guard runs again")
            self._complaint = ""
        except (OperatorError, OSError) as problem:
            if str(problem) != self._complaint:
                log.error("%s; trying again every %g s", problem, _RESTART_PAUSE_S)
            self._complaint = str(problem)
            self._closing.wait(_RESTART_PAUSE_S)

    def _how_it_ended(self) -> Tuple[str, str]:
        """One word, and one line for people."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_TIMEOUT_S)
        self._process.kill()  # it closed the channel, so it is of no use any more
        code = self._process.wait()
        hung, self._hung = self._hung, False
        if hung:
            return "hung", f"the motor guard did not answer within {_ANSWER_TIMEOUT_S * 1e3:.0f} ms and was ended"
        by = signal.Signals(-code).name if code < 0 else f"code {code}"
        return "ended", f"the motor guard ended by {by}"
