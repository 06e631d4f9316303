"""What becomes of a request: the one place where a person's word reaches the robot, by socket or by page."""

import logging
import time
from pathlib import Path
from typing import Callable, Optional

import msgspec

from serving import files
from serving.capture import Capture
from serving.contracts.events import utc_now
from serving.control import Control
from serving.errors import JetloopError, OperatorError
from serving.local import requests
from serving.local.glimpse import Glimpse
from serving.local.requests import Answer, Request
from serving.probation import Probation
from serving.reporter import Tells
from serving.slots import Slots
from serving.status import StatusFile
from serving.upload import Uploads

log = logging.getLogger("operator")

STOPPED_FILE = "stopped.json"
_FRAME_TIMEOUT_S = 1.0


class _Stopped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    at: str  # RFC 3339, UTC


class Orders:
    """Does what is asked. Any thread; `stop` waits for nobody.

    Args:
        state_dir: where a stop is remembered.
        status: what the robot does now.
    """

    def __init__(
        self,
        state_dir: Path,
        control: Control,
        probation: Probation,
        slots: Slots,
        reporter: Tells,
        glimpse: Glimpse,
        capture: Capture,
        uploads: Uploads,
        status: Callable[[], StatusFile],
    ) -> None:
        self._path = state_dir / STOPPED_FILE
        self._control, self._probation, self._slots = control, probation, slots
        self._reporter, self._glimpse = reporter, glimpse
        self._capture, self._uploads = capture, uploads
        self._status = status
        self._remembered = _remembered(self._path)
        if self._remembered is not None:
            control.hold(self._remembered)

    def do(self, request: Request, by: str) -> Answer:
        """Does it, and answers; never raises for what the robot or the disk does.

        Args:
            by: who asks, in words, for the log.
        """
        if not isinstance(request, requests.GetStatus):
            log.info("%s: %s", by, msgspec.json.encode(request).decode())
        try:
            said = self._do(request, by)
            return Answer(ok=True, said=said, status=self._status())
        except JetloopError as problem:
            log.warning("%s: refused: %s", by, problem)
            return Answer(ok=False, said=str(problem))

    def _do(self, request: Request, by: str) -> str:
        if isinstance(request, requests.Stop):
            return self._stop(request, by)
        if isinstance(request, requests.Resume):
            return self._resume()
        if isinstance(request, requests.Rollback):
            return self._roll_back(request.text or f"asked for by {by}")
        if isinstance(request, requests.Label):
            return self._label(request.label)
        if isinstance(request, requests.CaptureBegin):
            return f"session {self._capture.begin(request.place, request.safety_distance_cm)} begins"
        if isinstance(request, requests.CaptureFinish):
            path = self._capture.finish()
            return f"finished: {path}; {self._uploads.wake()}"
        if isinstance(request, requests.CaptureDiscard):
            return f"session {self._capture.discard()} is deleted"
        return ""

    def _stop(self, request: requests.Stop, by: str) -> str:
        drove = self._control.status().mode == "driving"
        reason = f"by {by}{f': {request.text}' if request.text else ''}"
        self._control.hold(reason)
        if drove and not request.planned:
            self._reporter.emit("intervention", {"what": "stop", "detail": reason})
            self._probation.intervened(reason)
        try:
            files.write_sealed(self._path, _Stopped(reason, utc_now().isoformat()))
        except OSError as problem:
            return f"stopped until the next start only: {self._path}: {problem.strerror}"
        return "stopped, and stays so until `resume`, also after a restart"

    def _resume(self) -> str:
        if self._control.held is None:
            return "it was not stopped"
        try:
            if self._path.exists():
                self._path.unlink()
                files.sync_folder(self._path.parent)
        except OSError as problem:
            self._control.let_go()
            return f"drives again, but will stand still after a restart: {self._path}: {problem.strerror}"
        self._control.let_go()
        return "drives again"

    def _roll_back(self, text: str) -> str:
        running, previous = self._slots.running, self._slots.previous()
        if running is None or previous is None:
            raise OperatorError("there is no engine to go back to: no intact one ran before this one")
        self._probation.go_back("operator", text)
        there, back = running.passport.release_id, previous.passport.release_id
        return f"going back from {there} to {back}; {there} is not taken again"

    def _label(self, label: str) -> str:
        begun_s = time.monotonic()
        pixels = self._glimpse.pixels(_FRAME_TIMEOUT_S)
        if pixels is None:
            raise OperatorError(f"no frame came within {time.monotonic() - begun_s:.1f} s: see what status says")
        return self._capture.label(pixels, label)


def _remembered(path: Path) -> Optional[str]:
    """Why a person stopped the robot before this start; None when nobody did."""
    found = files.read_sealed(path, _Stopped)
    if found is not None:
        return found.reason
    try:
        damaged = path.exists()
    except OSError:
        damaged = True
    return f"stopped: {path} is there but damaged; `jetloop-robot resume` drives again" if damaged else None
