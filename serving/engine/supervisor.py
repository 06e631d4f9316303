"""Which engine drives: the next comes up beside it and takes over between two frames; a failed one is started again.

Three threads meet here. The control thread asks with `take()` before each frame, and tells what came of it with
`decided()` and `failed()`; none of the three waits. The updater's thread waits in `activate()` until the new engine
drives. A thread of this class starts the engine at boot, and again when it failed.

How an engine is started and checked is in loading.py, what goes from thread to thread in handover.py. What is signed
and what belongs on the disk is not decided here (updater.py, slots.py).
"""

import logging
import threading
import time
from typing import Callable, Optional

from serving.config import EngineSettings
from serving.engine.client import EngineFailed
from serving.engine.handover import Handover
from serving.engine.loading import Loaded, load
from serving.errors import JetloopError, OperatorError, RejectedError
from serving.reporter import Tells
from serving.slots import Candidate

log = logging.getLogger("engine")

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.5, 30.0
_HEALTHY_AFTER_S = 30.0  # an engine that held this long starts again at once when it fails
_MEMORY_EVERY_S = 1.0  # the worker's memory is looked at this often


def _never_going_back(candidate: Candidate, cause: str) -> None:
    """Nothing to go back to: the same engine is tried on."""


class Supervisor:
    """Owns the engine that drives. See the module's docstring for which thread calls what.

    Args:
        settings: the table `[engine]` of robot.toml.
        reporter: told what happens.
        on_failing: called with the release that drives and the last cause, each time its engine failed
            `settings.max_failures` times in a row. It runs on this class's thread with nothing locked, may `activate()`
            another release, and is waited for before the engine that failed is tried again.
    """

    def __init__(
        self,
        settings: EngineSettings,
        reporter: Tells,
        on_failing: Callable[[Candidate, str], None] = _never_going_back,
    ) -> None:
        self._settings = settings
        self._reporter = reporter
        self._on_failing = on_failing
        self._failures = 0  # in a row, of the engine that is wanted
        self._cause = ""  # of the last one
        self._lock = threading.Lock()  # of the fields below; held for moments only
        self._running: Optional[Loaded] = None
        self._incoming: Optional[Handover] = None  # ready, not yet taken
        self._handover: Optional[Handover] = None  # taken, not yet settled
        self._wanted: Optional[Candidate] = None
        self._decided_s: Optional[float] = None  # time.monotonic() of the last decision
        self._started_s = 0.0
        self._trouble = ""
        self._booting = True  # no engine drove yet
        self._loading = threading.Lock()  # held while an engine is brought up
        self._needed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name="engine", daemon=True)
        self._thread.start()

    # What any thread may ask.

    @property
    def wanted(self) -> Optional[Candidate]:
        """The release that drives, or will as soon as its engine runs; None while there is no model."""
        return self._wanted

    @property
    def running(self) -> bool:
        """Whether an engine is there for the next frame."""
        return self._running is not None

    @property
    def trouble(self) -> str:
        """Why no engine runs; empty when one does, when it is on its way, or when no release came yet."""
        return self._trouble

    # The control thread.

    def take(self) -> Optional[Loaded]:
        """The engine for the next frame: here, and only here, a new one takes over."""
        if self._incoming is None:  # no lock on the way of every frame
            return self._running
        with self._lock:
            if self._incoming is not None:
                handover, self._incoming = self._incoming, None
                handover.previous, self._running = self._running, handover.loaded
                self._handover, self._started_s = handover, time.monotonic()
                self._tell_engine(handover.loaded.candidate)
                handover.taken.set()
            return self._running

    def decided(self, loaded: Loaded) -> None:
        """A decision by this engine reached the motors."""
        now_s = time.monotonic()
        handover = self._handover
        if handover is not None and handover.loaded is loaded:
            if self._decided_s is not None:
                handover.gap_ms = (now_s - self._decided_s) * 1e3
            self._settle(handover)
        self._decided_s = now_s

    def failed(self, loaded: Loaded, problem: EngineFailed) -> None:
        """This engine crashed, hung or answered nonsense; its worker has been ended."""
        with self._lock:
            if self._running is not loaded:
                return
            handover = self._handover
            if handover is not None and handover.loaded is loaded:
                # It has not decided anything yet: the one before it is still there.
                handover.failure, self._handover, self._running = problem, None, handover.previous
                self._tell_engine(handover.previous.candidate if handover.previous else self._wanted)
                handover.settled.set()
                return
            if time.monotonic() - self._started_s > _HEALTHY_AFTER_S:
                self._failures = 0
            self._running, self._trouble = None, str(problem)
            self._failures, self._cause = self._failures + 1, str(problem)
        self._reporter.emit("engine.failed", {"cause": problem.cause, "detail": str(problem)})
        log.error("%s; motors stand still until it runs again", problem)
        self._needed.set()

    # The updater's thread, and the daemon at its start.

    def boot(self, candidate: Candidate) -> None:
        """Starts the engine of the slot that this robot boots with, in the background."""
        with self._lock:
            self._wanted = candidate
        self._needed.set()

    def activate(self, candidate: Candidate, cause: str = "release") -> None:
        """Brings a new engine up beside the running one, checks it, and returns when it drives.

        Args:
            cause: for the event: `release`, or `going-back`.

        Raises:
            RejectedError: it is not fit; what ran before still does.
            OperatorError: this robot cannot run any such engine now.
        """
        with self._loading:
            previous = self._wanted
            handover = self._drive_with(candidate)
            with self._lock:
                self._wanted, self._trouble, self._failures = candidate, "", 0
        self._tell_activated(handover, previous.passport.release_id if previous else "", cause)

    def dismiss(self, why: str) -> None:
        """No engine drives from the next frame on, until `activate`; the motors stop as without any decision.

        Args:
            why: one line for people.
        """
        with self._loading:
            with self._lock:
                running, self._running = self._running, None
                self._wanted, self._trouble, self._failures = None, why, 0
            self._tell_engine(None)
        if running is not None:
            running.engine.close()
        log.error("%s: standing still", why)

    def close(self) -> None:
        """Ends all workers. The control thread has ended before."""
        self._closing.set()
        self._needed.set()
        with self._lock:
            handovers = (self._incoming, self._handover)
            engines = [h.loaded for h in handovers if h] + [h.previous for h in handovers if h and h.previous]
            self._incoming = self._handover = None
            if self._running is not None:
                engines.append(self._running)
            self._running = None
        for loaded in engines:
            loaded.engine.kill()
        # An engine that is just loading is not waited for: its worker ends with this process.
        self._thread.join(timeout=0.1)

    # Bringing an engine up.

    def _drive_with(self, candidate: Candidate) -> Handover:
        """Loads an engine, hands it over, and lets the one before it go.

        Raises:
            RejectedError: it is not fit; what ran before still does.
            OperatorError: this robot cannot run such engines now, or the daemon is stopping.
        """
        handover = Handover(load(candidate, self._settings, self._closing))
        try:
            self._hand_over(handover)
        except JetloopError:
            handover.loaded.engine.kill()
            raise
        if handover.previous is not None:
            handover.previous.engine.close()
        return handover

    def _hand_over(self, handover: Handover) -> None:
        """Offers an engine to the control thread and waits until it made its first decision."""
        with self._lock:
            self._incoming = handover
        handover.wait_taken(self._closing)
        self._withdraw(handover)
        if not handover.taken.is_set():
            raise OperatorError("no frame was asked for in time: the daemon is stopping, or its camera hangs")
        if not handover.wait_settled(self._closing):
            if self._closing.is_set():
                raise OperatorError("the daemon is stopping")
            log.warning("%s drives, but no fresh frame came to decide on", handover.loaded.passport.release_id)
            self._settle(handover)
        if handover.failure is not None:
            raise RejectedError(f"at its first frame {handover.failure}")

    def _withdraw(self, handover: Handover) -> None:
        """Takes an offer back, unless the control thread took it."""
        with self._lock:
            if self._incoming is handover:
                self._incoming = None

    def _settle(self, handover: Handover) -> None:
        with self._lock:
            if self._handover is handover:
                self._handover = None
        handover.settled.set()

    # Keeping it up.

    def _keep_running(self) -> None:
        backoff_s = 0.0
        while not self._closing.is_set():
            if not self._needed.wait(_MEMORY_EVERY_S):
                self._watch_memory()
                continue
            self._needed.clear()
            if time.monotonic() - self._started_s > _HEALTHY_AFTER_S:
                backoff_s = 0.0
            while not self._closing.wait(backoff_s):
                backoff_s = min(max(backoff_s * 2, _BACKOFF_MIN_S), _BACKOFF_MAX_S)
                if self._gone_back() or self._restart():
                    break
                log.warning("trying again in %.1f s", backoff_s)

    def _watch_memory(self) -> None:
        running = self._running
        if running is not None:
            running.engine.end_if_over(self._settings.max_memory_mb)

    def _gone_back(self) -> bool:
        """Lets the owner put another release in the place of one that keeps failing; True when that one drives."""
        with self._lock:
            candidate, failing = self._wanted, self._failures >= self._settings.max_failures
            if failing:
                self._failures = 0
        if not failing or candidate is None:
            return False
        log.error("%s failed %d times in a row", candidate.passport.release_id, self._settings.max_failures)
        try:
            self._on_failing(candidate, self._cause)
        except JetloopError as problem:
            log.error("%s: there is no going back: %s", candidate.passport.release_id, problem)
        return self._running is not None

    def _restart(self) -> bool:
        """Starts the engine that is wanted, unless one runs; False when that has to be tried again."""
        with self._loading:
            candidate = self._wanted
            if candidate is None or self._running is not None:
                return True
            try:
                handover = self._drive_with(candidate)
            except JetloopError as problem:
                if self._closing.is_set():
                    return True
                with self._lock:
                    self._trouble = self._cause = str(problem)
                    self._failures += 1
                log.error("%s does not start: %s", candidate.passport.release_id, problem)
                return False
            self._trouble = ""
        if self._booting:
            self._tell_activated(handover, "", "start")
        return True

    # Telling.

    def _tell_engine(self, candidate: Optional[Candidate]) -> None:
        passport = candidate.passport if candidate else None
        self._reporter.engine_is(passport.release_id if passport else "", passport.engine.sha256 if passport else "")

    def _tell_activated(self, handover: Handover, previous_release: str, cause: str) -> None:
        self._booting = False
        gap = "" if handover.gap_ms is None else f", {handover.gap_ms:.0f} ms after the last decision"
        log.info("%s drives%s", handover.loaded.passport.release_id, gap)
        self._reporter.emit("model.activated", handover.told(previous_release, cause))
