"""The robot's line to the broker: drains the outbox, tells the robot's state, hears wake-ups.

Here is what other threads call, and the thread that connects again after a failure; one connection's work is in
mqtt_connection.py. What the broker sends is never trusted: a wake-up only makes the updater look at the signed
repository.
"""

import logging
import threading
import time
from typing import Callable

from serving.backoff import backoff_s
from serving.config import MqttSettings
from serving.contracts.events import RobotState
from serving.errors import OperatorError
from serving.mqtt_connection import Connection
from serving.mqtt_desk import Desk, Who
from serving.mqtt_tls import tls_context
from serving.outbox import Outbox
from serving.settling import Settling

_BACKOFF_BASE_S = 0.5
_STABLE_S = 10.0  # a connection that lasted this long was a good one: the next failure is the first again

log = logging.getLogger(__name__)


class Link:
    """One robot's connection to its broker.

    Args:
        settings: the table `[mqtt]` of robot.toml.
        outbox: drained oldest first.
        site, robot, session, ring: who this is; `ring` names the wake-up topic.
        on_wakeup: called on every wake-up, also the retained one at connect; it must return quickly.

    Raises:
        OperatorError: a certificate or key cannot be read.
    """

    def __init__(
        self,
        settings: MqttSettings,
        outbox: Outbox,
        site: str,
        robot: str,
        session: str,
        ring: str,
        on_wakeup: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._who = Who(site, robot, session, ring)
        self._desk = Desk()
        self.listen(ring, on_wakeup)
        self._settling = Settling(outbox, settings.settle_s)
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        tls_context(settings)  # what cannot be read is the operator's before anything starts
        outbox.on_put = self._desk.wake

    def listen(self, channel: str, on_wakeup: Callable[[], None]) -> None:
        """Hears the wake-ups of another channel too, such as the shadow's. Before `start()`.

        Args:
            channel: a ring.
            on_wakeup: as for `Link`.
        """
        self._desk.listeners.append((channel, on_wakeup))

    def start(self) -> None:
        """Connects, and keeps connected, in a thread of its own; a broker that is not there is tried again."""
        self._thread.start()

    def publish_state(self, state: RobotState) -> None:
        """Tells the robot's state, retained, now or as soon as there is a connection. Only the newest counts."""
        self._desk.tell(state)

    def stop(self, timeout_s: float = 3.0) -> None:
        """Sends what it can in time, says goodbye (state offline, retained), and disconnects.

        What was not acknowledged stays in the outbox.
        """
        self._desk.end(give_up_at=time.monotonic() + timeout_s)
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)

    def _run(self) -> None:
        failures = 0
        while not self._desk.stopping.is_set():
            connection = Connection(self._settings, self._outbox, self._who, self._desk, self._settling, self._say)
            try:
                connection.serve()
                return
            except OperatorError as problem:
                failures = 1 if connection.lasted_s() > _STABLE_S else failures + 1
                self._say(logging.WARNING, f"{problem}; trying again, up to every {self._settings.reconnect_max_s:g} s")
            except Exception:  # a fault of ours must not silence the robot for good
                failures += 1
                log.exception("the link failed; trying again")
            finally:
                connection.close()
            self._desk.stopping.wait(backoff_s(failures, _BACKOFF_BASE_S, self._settings.reconnect_max_s))

    def _say(self, level: int, text: str) -> None:
        """Logs a change of state once, however often it is found."""
        if text != self._said:
            self._said = text
            log.log(level, "%s:%d: %s", self._settings.host, self._settings.port, text)
