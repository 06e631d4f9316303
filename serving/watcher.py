"""The engine that watches: a worker at the lowest priority sees frames that another engine decided on.

A frame is offered with each decision; it is copied only when the watcher has nothing else to do, so the newest one wins
and none waits. What it says is compared with what drove: counts for the `metrics` event, the most disagreeing frames to
disagreements.py. Where its engine comes from is shadow.py.

Priority is the CPU's. On a board where both engines share a GPU only `frames_per_s` bounds what the watcher takes.
"""

import datetime
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import msgspec
import numpy as np

from serving import preprocess
from serving.backoff import backoff_s
from serving.config import EngineSettings, ShadowSettings
from serving.contracts.releases import Passport
from serving.decide import Action, p_blocked
from serving.disagreements import Disagreement, Disagreements
from serving.engine.check import check
from serving.engine.client import Engine, EngineFailed
from serving.engine.loading import Loaded
from serving.errors import JetloopError, RejectedError
from serving.hardware.base import Frame
from serving.slots import Candidate

log = logging.getLogger("shadow")

_LOWEST_PRIORITY = 19
_IDLE_S = 0.2  # how often an idle watcher looks whether it shall end
_KEEP_EVERY_S = 1.0  # frames of one moment look alike
_WORTH_KEEPING = 0.2  # difference of the two probabilities
_RESTART_BASE_S, _RESTART_MAX_S = 1.0, 300.0
_TIMEOUT_S = 5.0  # of one inference: at the lowest priority a busy machine may take long


class _Offer(NamedTuple):
    """What drove, for the frame in the buffer."""

    passport: Passport
    p_blocked: float
    captured_at: float  # time.monotonic()


@dataclass
class _Counts:
    """Between two metrics events."""

    compared: int = 0
    skipped: int = 0  # offered while the watcher was busy
    disagreed: int = 0  # one says blocked, the other free
    failures: int = 0
    difference: float = 0.0  # sum over the compared
    largest: float = 0.0
    latency_ms: List[float] = field(default_factory=list)


class Watcher:
    """One engine that watches.

    Args:
        settings: the table `[shadow]` of robot.toml.
        engine: the table `[engine]`: the same target and interpreter.
        folder: where the most disagreeing frames are kept.
    """

    def __init__(self, settings: ShadowSettings, engine: EngineSettings, folder: Path) -> None:
        self._period_s = 1 / settings.frames_per_s
        # At the lowest priority its latency says nothing about its fitness; it is reported, not judged.
        self._settings = msgspec.structs.replace(engine, max_latency_ms=10_000.0, max_latency_ratio=1e6)
        self._kept = Disagreements(folder, settings.keep_frames, int(settings.keep_mb * 1e6))
        self._kept_s = -_KEEP_EVERY_S
        # (224, 224, 3) uint8: written by the control thread while `_wants` is set, read by ours while it is not
        self._pixels = np.empty(preprocess.FRAME_SHAPE, np.uint8)
        self._offer: Optional[_Offer] = None
        self._wants = threading.Event()
        self._offered = threading.Event()
        self._lock = threading.Lock()  # of the next two fields; held for moments only
        self._counts = _Counts()
        self._next: Optional[Tuple[Candidate, Engine]] = None  # ready to take over
        self._candidate: Optional[Candidate] = None
        self._engine: Optional[Engine] = None
        self._failures = 0  # in a row
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the worker; a frame that it is at is given up."""
        self._closing.set()
        self._offered.set()
        engine = self._engine
        if engine is not None:
            engine.kill()
        if self._thread.is_alive():
            self._thread.join(timeout=0.3)

    def boot(self, candidate: Candidate) -> None:
        """The engine that watched last; it is loaded in the background. Before `start()`."""
        self._candidate = candidate

    def offer(self, loaded: Loaded, frame: Frame, action: Action) -> None:
        """A frame that was decided on. For the control thread: copies 150 kB or nothing, and never waits."""
        if not self._wants.is_set():
            self._counts.skipped += 1  # unlocked: one that falls between two metrics events may be missed
            return
        self._wants.clear()
        np.copyto(self._pixels, frame.pixels)
        self._offer = _Offer(loaded.passport, action.p_blocked, frame.captured_at)
        self._offered.set()

    def activate(self, candidate: Candidate) -> None:
        """Loads an engine and lets it watch from the next frame on. For the updater.

        Raises:
            RejectedError: it is not fit.
            OperatorError: this robot cannot run such engines now.
        """
        engine = self._load(candidate)
        with self._lock:
            replaced, self._next = self._next, (candidate, engine)
        if replaced is not None:
            replaced[1].close()
        log.info("%s watches, with %s", candidate.passport.release_id, engine.runtime)

    def take(self) -> Dict[str, Any]:
        """What was compared since the last call, for the `metrics` event."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
        candidate = self._candidate
        taken: Dict[str, Any] = {
            "release": candidate.passport.release_id if candidate else "",
            "engine": candidate.passport.engine.sha256 if candidate else "",
            "compared": counts.compared,
            "skipped": counts.skipped,
            "disagreed": counts.disagreed,
            "failures": counts.failures,
            "kept": len(self._kept),
        }
        if counts.compared:
            taken["disagreement_rate"] = counts.disagreed / counts.compared
            taken["mean_difference"] = counts.difference / counts.compared
            taken["largest_difference"] = counts.largest
            p50, p99 = np.percentile(counts.latency_ms, (50, 99))
            taken["latency_p50_ms"], taken["latency_p99_ms"] = float(p50), float(p99)
        return taken

    # The thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._step()
            except Exception:  # a fault of ours must not end the watch for good
                log.exception("the watcher failed; going on in %g s", _RESTART_MAX_S)
                self._closing.wait(_RESTART_MAX_S)
        for engine in (self._engine, self._next[1] if self._next else None):
            if engine is not None:
                engine.kill()

    def _step(self) -> None:
        """Takes over a new engine, or watches one frame, or starts a failed engine again."""
        with self._lock:
            new, self._next = self._next, None
        if new is not None:
            if self._engine is not None:
                self._engine.close()
            self._candidate, self._engine = new
            self._failures = 0
        if self._engine is None:
            self._restart()
            return
        self._engine.end_if_over(self._settings.max_memory_mb)  # the next inference says so
        begun_s = time.monotonic()
        self._offered.clear()
        self._wants.set()
        while not self._offered.wait(_IDLE_S):
            if self._closing.is_set():
                return
        offer, self._offer = self._offer, None
        if offer is not None and not self._closing.is_set():
            self._watch(self._engine, offer)
            self._closing.wait(max(0.0, begun_s + self._period_s - time.monotonic()))

    def _watch(self, engine: Engine, offer: _Offer) -> None:
        assert self._candidate is not None
        passport = self._candidate.passport
        if passport.engine.sha256 == offer.passport.engine.sha256:
            return  # the same engine drives: nothing to compare
        begun_s = time.perf_counter()
        try:
            logits = engine.infer(self._pixels, _TIMEOUT_S)
        except EngineFailed as problem:
            self._failed(problem)
            return
        latency_ms = (time.perf_counter() - begun_s) * 1e3
        self._failures = 0
        found = _compare(offer, passport, p_blocked(logits, passport.decision.temperature))
        with self._lock:
            counts = self._counts
            counts.compared += 1
            counts.disagreed += found.drives_blocked != found.shadow_blocked
            counts.difference += found.size
            counts.largest = max(counts.largest, found.size)
            counts.latency_ms.append(latency_ms)
        now_s = time.monotonic()
        if found.size >= _WORTH_KEEPING and now_s - self._kept_s >= _KEEP_EVERY_S:
            self._kept_s = now_s
            self._kept.consider(self._pixels, found, time.time_ns() // 1_000_000)

    def _failed(self, problem: JetloopError) -> None:
        if self._closing.is_set():
            return
        self._engine = None
        self._failures += 1
        with self._lock:
            self._counts.failures += 1
        log.warning("the shadow's engine failed, the one that drives does not mind: %s", problem)

    def _restart(self) -> None:
        """Waits for the first engine, or starts one that failed again."""
        if self._candidate is None:
            self._closing.wait(_IDLE_S)
            return
        if self._failures and self._closing.wait(backoff_s(self._failures, _RESTART_BASE_S, _RESTART_MAX_S)):
            return
        try:
            self._engine = self._load(self._candidate)
        except JetloopError as problem:
            self._failed(problem)

    def _load(self, candidate: Candidate) -> Engine:
        """Starts and checks an engine at the lowest priority.

        A process begins with the priority of the thread that starts it, and a thread without privileges cannot go back
        up. So a thread of its own starts the worker; ours, which shares Python's lock with the control thread, stays.
        """
        made: List[Engine] = []
        problems: List[BaseException] = []

        def load() -> None:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)  # of this thread, on Linux
                made.append(self._checked(candidate))
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=load, name="shadow-load", daemon=True)
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return made[0]

    def _checked(self, candidate: Candidate) -> Engine:
        """Loads and checks an engine.

        Raises:
            RejectedError: it does not load, or its logits are not those of its passport.
            OperatorError: this robot cannot run such engines now.
        """
        engine: Optional[Engine] = None
        try:
            engine = Engine(candidate.engine, self._settings, candidate.passport.engine_key or None)
            check(engine, candidate.passport, candidate.golden, self._settings)
        except EngineFailed as problem:
            raise RejectedError(str(problem)) from None
        except BaseException:
            if engine is not None:
                engine.close()
            raise
        return engine


def _compare(offer: _Offer, passport: Passport, shadow_p: float) -> Disagreement:
    ago = datetime.timedelta(seconds=time.monotonic() - offer.captured_at)
    return Disagreement(
        at=(datetime.datetime.now(datetime.timezone.utc) - ago).isoformat(),
        drives=offer.passport.release_id,
        shadow=passport.release_id,
        drives_p_blocked=offer.p_blocked,
        shadow_p_blocked=shadow_p,
        drives_blocked=offer.p_blocked >= offer.passport.decision.blocked_threshold,
        shadow_blocked=shadow_p >= passport.decision.blocked_threshold,
    )
