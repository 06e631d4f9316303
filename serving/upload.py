"""Finished sessions on their way to where they go: one at a time, again and again until it is confirmed.

The bytes go out in a process of its own (upload_process.py) at the lowest priority, alive only while there is something
to upload: what a network or a library does there costs the daemon neither memory nor a decision.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Dict

import msgspec

from serving.backoff import backoff_s
from serving.capture import Capture
from serving.config import UploadSettings
from serving.errors import OperatorError
from serving.upload_process import REFUSED

log = logging.getLogger("upload")

_BACKOFF_BASE_S = 2.0
_IDLE_S = 3600.0
_LOOK_S = 0.1  # how soon a process that ended is noticed, and a stopping daemon its process


class Uploads:
    """The thread that starts one process after the other.

    Attributes:
        said: what came of the last attempt, in words.
    """

    def __init__(self, settings: UploadSettings, capture: Capture) -> None:
        self._settings, self._capture = settings, capture
        self.said = ""
        self._refused: Dict[str, str] = {}  # until the next start
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)

    def start(self) -> None:
        """Also what the last start left is uploaded. Without a url there is nothing to do."""
        if self._settings.url:
            self._thread.start()

    def wake(self) -> str:
        """There is a new session. Any thread; says what becomes of it."""
        if not self._settings.url:
            return "it stays here until someone fetches it ([upload] names no url)"
        self._wake.set()
        return f"it is uploaded to {self._settings.url}"

    def close(self) -> None:
        """Ends an upload under way; the next start goes on with it."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._upload_all()
                failures, wait_s = 0, _IDLE_S
            except OperatorError as problem:
                failures += 1
                wait_s = backoff_s(failures, _BACKOFF_BASE_S, self._settings.retry_max_s)
                self._say(logging.WARNING, f"{problem}; trying again, up to every {self._settings.retry_max_s:g} s")
            except Exception:  # a fault of ours must not end the uploads for good
                failures, wait_s = failures + 1, self._settings.retry_max_s
                log.exception("the uploads failed; trying again in %.0f s", wait_s)
            self._wake.wait(wait_s)

    def _upload_all(self) -> None:
        """Brings away what waits, the oldest first.

        Raises:
            OperatorError: the network, the server or the disk; worth another attempt.
        """
        for path in self._capture.waiting():
            if path.name in self._refused or self._closing.is_set():
                continue
            code, reason = self._attempt(path)
            if self._closing.is_set():
                return
            if code == 0:
                self._capture.confirmed(path)
                self._say(logging.INFO, f"{path.name} is at {self._settings.url}, every byte of it")
            elif code == REFUSED:
                self._refused[path.name] = reason
                self._say(logging.ERROR, f"{path.name} stays here: {reason}")
            else:
                raise OperatorError(f"{path.name} is not uploaded: {reason}")

    def _attempt(self, path: Path) -> "tuple[int, str]":
        """One process; its exit code, and the last thing that it said."""
        command = [sys.executable, "-P", "-m", "serving.upload_process", str(path)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended already; its exit code tells
                process.stdin.write(msgspec.json.encode(self._settings))  # holds the token: not for the command line
                process.stdin.flush()
            while True:
                try:
                    _, errors = process.communicate(timeout=_LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    if self._closing.is_set():
                        return 1, "the daemon is stopping"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        return process.returncode, lines[-1] if lines else f"its process ended with {process.returncode}"

    def _say(self, level: int, text: str) -> None:
        """Logs what is new, once."""
        if text != self.said:
            self.said = text
            log.log(level, "%s", text)
