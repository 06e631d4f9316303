"""The release service's loop: when to look, when to wait, what to say when something is down. One thread."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from pipelines.release.repository import Repository
from pipelines.release.service import Service
from serving.errors import JetloopError

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 30.0
OFFLINE_WARNING_DAYS = 30


class Runner:
    """Reconciles when woken and every `poll_s`; keeps the metadata from expiring; retries with backoff."""

    def __init__(
        self, service: Service, repository: Repository, poll_s: float, register_webhook: Callable[[], None] | None
    ) -> None:
        self._service = service
        self._repository = repository
        self._poll_s = poll_s
        self._register_webhook = register_webhook
        self._wake = threading.Event()
        self._stopping = False
        self._failures = 0
        self._trouble = ""
        self._offered = False  # the webhook, since MLflow was last away
        self._heard = False  # MLflow took it
        self._last_pass = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)

    def start(self) -> None:
        self._warn_of_offline_keys()
        self._thread.start()

    def wake(self) -> None:
        """Looks now; from any thread."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends after the pass that is under way; a longer one is cut off, which the order of writing allows."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def health(self) -> dict[str, Any]:
        """For /healthz: `ok` while the loop turns, whatever is down outside."""
        return {
            "ok": self._thread.is_alive(),
            "trouble": self._trouble,
            "webhook": self._heard,
            "seconds_since_pass": round(time.monotonic() - self._last_pass, 1),
            "expires": {role: end.isoformat() for role, end in self._repository.expires().items()},
        }

    def _run(self) -> None:
        while not self._stopping:
            delay_s = self._pass()
            self._last_pass = time.monotonic()
            self._wake.wait(delay_s)
            self._wake.clear()

    def _pass(self) -> float:
        """One turn of the loop; returns seconds until the next."""
        try:
            self._renew()
            self._service.reconcile()
            self._recovered()
            self._ensure_webhook()
            return self._poll_s
        except JetloopError as problem:
            return self._failed(str(problem))
        except OSError as problem:
            return self._failed(f"cannot write the release folder ({problem}): free space or mend its rights")
        except Exception:
            # A fault of ours: the loop outlives it, and the log keeps what is needed to mend it.
            log.exception("a pass of the release service failed")
            return self._failed("an unexpected error, see above")

    def _renew(self) -> None:
        renewed = self._repository.renew()
        if renewed:
            log.info("signed anew before they expire: %s", ", ".join(renewed))
            self._warn_of_offline_keys()

    def _failed(self, trouble: str) -> float:
        self._failures += 1
        self._offered = self._heard = False  # whoever comes back may have forgotten us
        delay_s = min(self._poll_s * 2.0 ** min(self._failures - 1, 10), MAX_BACKOFF_S) * random.uniform(0.8, 1.2)
        if _kind(trouble) != _kind(self._trouble):  # details of an outage change, and say nothing new
            log.warning("%s: retrying, from every %g s to every %g s", trouble, self._poll_s, MAX_BACKOFF_S)
        self._trouble = trouble
        return delay_s

    def _recovered(self) -> None:
        if self._trouble:
            log.info("all is well again, after %d attempts: %s", self._failures, _kind(self._trouble))
        self._failures, self._trouble = 0, ""

    def _ensure_webhook(self) -> None:
        if self._register_webhook and not self._offered:
            self._offered = True  # once, also when it fails: polling does the work, one line is enough
            try:
                self._register_webhook()
                self._heard = True
            except Exception as problem:  # MLflow raises many kinds; none of them may stop releasing
                line = " ".join(str(problem).split())[:200]
                log.warning("MLflow takes no webhook (%s): polling every %g s", line, self._poll_s)

    def _warn_of_offline_keys(self) -> None:
        now = time.time()
        for role in ("root", "targets"):
            days = (self._repository.expires()[role].timestamp() - now) / 86400
            if days < OFFLINE_WARNING_DAYS:
                log.warning(
                    "%s expires in %d days: sign it anew with `jetloop release keys renew %s`", role, days, role
                )


def _kind(trouble: str) -> str:
    return trouble.split("(")[0].strip()
