"""From a slot's files to an engine that is fit to drive: started, warm, and checked against its golden frames.

Which engine drives, and when, is in supervisor.py.
"""

import logging
import threading
from dataclasses import dataclass

from serving import preprocess
from serving.config import EngineSettings
from serving.contracts.releases import Passport
from serving.engine.board import wrong_key
from serving.engine.check import Checked, TooSlow, check
from serving.engine.client import Engine, EngineFailed
from serving.errors import OperatorError, RejectedError
from serving.slots import Candidate

log = logging.getLogger("engine")

_ATTEMPTS = 2  # a worker may be killed for want of memory, or a busy machine be slow, once
_PAUSE_S = 2.0  # between them: what made the machine busy may have ended


@dataclass(frozen=True, eq=False)
class Loaded:
    """An engine that passed its check and is fit to drive."""

    engine: Engine
    candidate: Candidate
    checked: Checked

    @property
    def passport(self) -> Passport:
        return self.candidate.passport


def load(candidate: Candidate, settings: EngineSettings, closing: threading.Event) -> Loaded:
    """Starts, warms and checks an engine.

    Args:
        closing: set when the daemon ends; then nothing more is begun.

    Raises:
        RejectedError: it is not fit.
        OperatorError: this robot cannot run such engines now.
    """
    passport = candidate.passport
    if passport.target != settings.target:
        raise RejectedError(f"the engine is for {passport.target}, this robot is {settings.target}")
    if passport.preprocessing != preprocess.PREPROCESSING:
        raise RejectedError(
            f"the engine is for preprocessing {passport.preprocessing}, this robot has {preprocess.PREPROCESSING}"
        )
    wrong = wrong_key(passport.engine_key, settings.target) if passport.engine_key else ""
    if wrong:
        raise RejectedError(wrong)
    for attempt in range(1, _ATTEMPTS + 1):
        if closing.is_set():
            break
        try:
            return _load_once(candidate, settings)
        except (EngineFailed, TooSlow) as problem:
            if attempt == _ATTEMPTS:
                raise RejectedError(str(problem)) from None
            log.warning("%s: %s; trying once more", passport.release_id, problem)
            closing.wait(_PAUSE_S)
    raise OperatorError("the daemon is stopping")


def _load_once(candidate: Candidate, settings: EngineSettings) -> Loaded:
    engine = Engine(candidate.engine, settings, candidate.passport.engine_key or None)
    try:
        checked = check(engine, candidate.passport, candidate.golden, settings)
    except BaseException:
        engine.close()
        raise
    log.info(
        "%s: loaded by %s, golden frames within %.2g, %.1f ms a decision",
        candidate.passport.release_id,
        engine.runtime,
        checked.parity_max_abs,
        checked.latency_p50_ms,
    )
    return Loaded(engine, candidate, checked)
