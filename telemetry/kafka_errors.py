"""What Kafka's client complains about, in one line each, and not again and again."""

import logging
import time

from confluent_kafka import KafkaError

from serving.errors import first_line

SAID_AGAIN_S = 10.0  # between two log lines of the same error


class Complaints:
    """librdkafka's `error_cb`: it tries again by itself, whatever it is, and says so twice a second.

    Args:
        where: Kafka's address.
        log: where to say it.
    """

    def __init__(self, where: str, log: logging.Logger) -> None:
        self._where, self._log = where, log
        self._said: dict[int, float] = {}  # code -> time.monotonic()

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._said.get(error.code(), -SAID_AGAIN_S) >= SAID_AGAIN_S:
            self._said[error.code()] = now
            self._log.warning("Kafka at %s: %s; trying again", self._where, error.str())


def described(problem: Exception) -> str:
    """What Kafka says, in one line."""
    error = problem.args[0] if problem.args else problem
    return error.str() if isinstance(error, KafkaError) else first_line(problem)
