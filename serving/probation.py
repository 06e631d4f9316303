"""Probation and going back: what a new engine must hold, and the one way back to the engine before it.

A thread of its own looks once a second. Who asks to go back (an operator, a withdrawn release) only leaves a request:
the engine before is loaded here, beside the one that drives, and takes over between two frames. How an engine drives is
judged in judge.py; what survives a reboot is the slots'.

The first engine of a robot is on no probation: there is nothing to go back to.
"""

import dataclasses
import logging
import threading
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

import msgspec

from serving.config import ProbationSettings
from serving.contracts.releases import Expected
from serving.decide import Motion
from serving.engine.loading import Loaded
from serving.errors import JetloopError, OperatorError
from serving.judge import Tally, Verdict, judge
from serving.pointer import Progress
from serving.reporter import Tells
from serving.slots import Candidate, Slots

log = logging.getLogger("probation")

_LOOK_EVERY_S = 1.0
_SAVE_EVERY_S = 10.0  # of driving: each is a write to an SD card
_RETRY_S = 10.0


class _Request(NamedTuple):
    engine_sha256: str  # that shall not run; another one may by the time it is read
    verdict: Verdict


class Probation:
    """Watches the engine that was committed last, and goes back when it must.

    Args:
        settings: the table `[probation]` of robot.toml.
        slots: made with `probation=True`, unless `settings.duration_s` is 0.
        activate: blocks until the candidate drives; raises what serving.engine.supervisor.Supervisor.activate raises.
        reporter: hears `model.rolled-back`.
        ended: called when a probation is over, either way: an update that waited may come.
    """

    def __init__(
        self,
        settings: ProbationSettings,
        slots: Slots,
        activate: Callable[[Candidate], None],
        reporter: Tells,
        ended: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._activate = activate
        self._reporter = reporter
        self._ended = ended
        self._looking = threading.Lock()  # held while going back
        self._lock = threading.Lock()  # of the next four fields; held for moments only
        self._tally = Tally()
        self._watched = ""  # sha256 of the engine on probation
        self._loaded: Optional[Loaded] = None  # of it, decided last
        self._request: Optional[_Request] = None
        self._seen: Optional[Candidate] = None  # what ran at the last look
        self._before_s = 0.0  # driven on probation before this start of the daemon
        self._saved = Progress()
        self._back_to: Optional[Candidate] = None  # until it drives, and the disk says so
        self._back_drives = False
        self._retry_s = 0.0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probation", daemon=True)

    # At the start and the end of the daemon.

    def boot(self) -> Optional[Candidate]:
        """What to boot with. Counts the start, and goes back when an engine on probation had too many of them."""
        candidate, progress = self._slots.current(), self._slots.probation
        if candidate is None or progress is None:
            return candidate
        if progress.starts >= self._settings.max_starts:
            text = f"{progress.starts} starts with it did not end as they should, {progress.driven_s:.0f} s driven"
            self._back_to, self._back_drives = self._go_back(Verdict("boot-loop", text)), True
            return self._back_to or candidate
        self._save(msgspec.structs.replace(progress, starts=progress.starts + 1))
        return candidate

    def start(self) -> None:
        self._thread.start()

    def ended_well(self) -> None:
        """The daemon ends because it was asked to: this start does not count towards a boot loop."""
        self._look_at_running()
        if self._watched:
            self._save(Progress(self._driven_s(), max(self._saved.starts - 1, 0)))

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.3)

    # Any thread; none of these waits for disk or engine, but `failing`.

    def decided(self, loaded: Loaded, motion: Motion, latency_ms: float) -> None:
        """A decision reached the motors. For the control thread."""
        if loaded.passport.engine.sha256 != self._watched:
            return
        with self._lock:
            self._tally.add(time.monotonic(), motion, latency_ms)
            self._tally.restarts += self._loaded is not None and self._loaded is not loaded
            self._loaded = loaded

    def intervened(self, reason: str) -> None:
        """A person stopped or moved the robot: on probation that is a reason to go back, later it is not."""
        if self._watched:
            self.go_back("intervention", reason)

    def go_back(self, cause: str, detail: str) -> None:
        """Back to the engine before, on probation or not: an operator's wish, a withdrawn release, a verdict.

        Args:
            cause: one word for the event, such as `operator` or `withdrawn`.
            detail: one line for people; remembered as the reason why this engine is not taken again.
        """
        running = self._slots.running
        if running is None:
            log.warning("%s: there is no engine to go back from", cause)
            return
        with self._lock:
            self._request = self._request or _Request(running.passport.engine.sha256, Verdict(cause, detail))
        self._wake.set()

    def failing(self, candidate: Candidate, cause: str) -> None:
        """The engine failed several times in a row. Waits until the one before drives, if there is one."""
        running = self._slots.running
        if running is not None and running.passport.engine == candidate.passport.engine:
            self.go_back("engine-failed", cause)
            self.look()

    # The thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.look()
            except Exception:  # a fault of ours must not end the watch
                log.exception("the probation's look failed; looking again in %g s", _LOOK_EVERY_S)
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()

    def look(self) -> None:
        """One look: goes back if that was asked for or must be, notes how far the probation came, or ends it."""
        with self._looking:
            self._look_at_running()
            verdict = self._requested() or self._judged()
            if verdict is not None:
                self._back_to, self._back_drives, self._retry_s = self._go_back(verdict), False, 0.0
            elif self._watched:
                self._note()
            if self._back_to is not None and time.monotonic() >= self._retry_s:
                if self._has_gone_back(self._back_to):
                    self._back_to = None
                self._retry_s = time.monotonic() + _RETRY_S

    def _look_at_running(self) -> None:
        """Begins to watch an engine that was committed since the last look."""
        running = self._slots.running
        if running is self._seen:
            return
        self._seen = running
        progress = self._slots.probation
        engine = running.passport.engine.sha256 if running and progress else ""
        if engine == self._watched:
            return
        with self._lock:
            self._tally, self._watched, self._loaded = Tally(), engine, None
        if running and progress:
            self._before_s, self._saved = progress.driven_s, progress
            left_s = max(self._settings.duration_s - progress.driven_s, 0)
            log.info("%s is on probation for %.0f s of driving", running.passport.release_id, left_s)

    def _driven_s(self) -> float:
        return self._before_s + self._tally.driven_s

    def _requested(self) -> Optional[Verdict]:
        with self._lock:
            request, self._request = self._request, None
        running = self._slots.running
        if request is None or running is None or running.passport.engine.sha256 != request.engine_sha256:
            return None
        return request.verdict

    def _judged(self) -> Optional[Verdict]:
        if not self._watched:
            return None
        ending = self._driven_s() >= self._settings.duration_s
        return judge(self._snapshot(), self._settings, ending, self._promised())

    def _promised(self) -> Optional[Expected]:
        """What the passport of the engine on probation says of how it drives; None where it says nothing."""
        running = self._slots.running
        expected = running.passport.expected if running else msgspec.UNSET
        return None if expected is msgspec.UNSET else expected

    def _snapshot(self) -> Tally:
        with self._lock:
            return dataclasses.replace(self._tally, latency_ms=self._tally.latency_ms.copy())

    def _note(self) -> None:
        driven_s = self._driven_s()
        if driven_s >= self._settings.duration_s:
            log.info("%s passed its probation: %s", self._release(), self._snapshot().figures())
            self._end()
        elif driven_s - self._saved.driven_s >= _SAVE_EVERY_S:
            self._save(msgspec.structs.replace(self._saved, driven_s=driven_s))

    def _end(self) -> None:
        """No more probation for what runs."""
        with self._lock:
            self._watched = ""
        self._save(None)
        self._ended()

    def _save(self, progress: Optional[Progress]) -> None:
        """A disk that refuses costs what was driven since, never a decision."""
        self._saved = progress or Progress()
        try:
            self._slots.progressed(progress)
        except OperatorError as problem:
            log.error("the probation's progress is not saved: %s", problem)

    def _go_back(self, verdict: Verdict) -> Optional[Candidate]:
        """Refuses what runs and names the slot before; what that one holds, or None where there is none."""
        bad, previous = self._slots.running, self._slots.previous()
        reason = f"{verdict.cause}: {verdict.detail}"
        if bad is None or previous is None:
            log.error("%s: %s; there is no engine to go back to", self._release(), reason)
            self._end()
            return None
        log.error("%s goes back to %s: %s", bad.passport.release_id, previous.passport.release_id, reason)
        self._slots.refuse(bad.passport.release_id, bad.passport.engine.sha256, reason)
        data: Dict[str, Any] = {
            "from": bad.passport.release_id,
            "to": previous.passport.release_id,
            "engine": bad.passport.engine.sha256,
            "cause": verdict.cause,
            "detail": verdict.detail,
        }
        if self._watched:
            data["figures"] = {**self._snapshot().figures(), "starts": self._saved.starts}
        self._reporter.emit("model.rolled-back", data)
        with self._lock:
            self._watched = ""
        self._roll_back()
        self._ended()
        return previous

    def _has_gone_back(self, previous: Candidate) -> bool:
        """Lets the engine before drive, and the disk say so; False when either has to be tried again."""
        running = self._slots.running
        if running and running.folder != previous.folder and not self._slots.refused(running.passport.engine.sha256):
            return True  # a release came meanwhile
        if not self._back_drives:
            try:
                self._activate(previous)
                self._back_drives = True
            except JetloopError as problem:
                if not self._closing.is_set():
                    log.error("%s does not take over: %s", previous.passport.release_id, problem)
        on_disk = (running is not None and running.folder == previous.folder) or self._roll_back()
        return self._back_drives and on_disk

    def _roll_back(self) -> bool:
        try:
            self._slots.rollback()
        except OperatorError as problem:
            log.error("going back is not on the disk yet, tried again every %g s: %s", _RETRY_S, problem)
            return False
        return True

    def _release(self) -> str:
        running = self._slots.running
        return running.passport.release_id if running else "no release"
