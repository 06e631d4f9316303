"""From MQTT to Kafka: the work of `jetloop bridge`.

A message is on the way between the two from when it is produced until Kafka's delivery report; only then it is
settled, and acknowledged to the MQTT broker, in the order in which it came. At most `window` messages are on the way:
with a full window nothing more is read, and the broker keeps what comes. When Kafka confirms nothing for a while, the
bridge leaves the broker until it does again. After a crash the broker sends again what was not
acknowledged: Kafka may then hold it twice, the store has it once.
"""

import collections
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from serving.errors import OperatorError
from telemetry.kafka_errors import Complaints, described
from telemetry.kafka_topics import Record, dead_letter, header, record
from telemetry.mqtt_inlet import Received

log = logging.getLogger("jetloop.bridge")

STALLED_S = 10.0  # Kafka confirmed nothing for so long: leave the broker
POLL_S = 0.002  # between two looks for delivery reports
IDLE_S = 0.25
FINISH_S = 10.0  # for the last delivery reports
STATUS_S = 30.0
DEAD_LOGGED = 5  # dead letters in full, between two status lines
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD)


@dataclass
class Counts:
    bridged: int = 0
    dead: int = 0

    def __str__(self) -> str:
        return f"bridged {self.bridged}, dead letters {self.dead}"


@dataclass
class OnTheWay:
    """One message between MQTT and Kafka."""

    message: Received
    delivered: bool = False


class KafkaSink:
    """Of the MQTT inlet: produces to Kafka, and settles what Kafka has.

    Args:
        config: of librdkafka's producer, see `kafka_options.producer_config`.
        prefix: of the topics.
        window: messages on the way at most.

    Raises:
        OperatorError: a property is wrong.
    """

    def __init__(self, config: dict[str, Any], prefix: str, window: int) -> None:
        self.counts = Counts()
        self._config = {**config, "logger": log, "error_cb": Complaints(config["bootstrap.servers"], log)}
        self._prefix, self._window = prefix, window
        self._in_order: collections.deque[OnTheWay] = collections.deque()  # of this connection, not acknowledged
        self._unconfirmed = 0  # of this and earlier connections
        self._progress_at = time.monotonic()  # last delivery report, or last time that none was due
        self._failure: KafkaError | None = None
        self._status = ("", time.monotonic())
        self._to_log = DEAD_LOGGED
        self._producer = self._make_producer()

    def take(self, message: Received) -> None:
        made = record(message.topic, message.payload)
        entry = OnTheWay(message)
        self._in_order.append(entry)
        self._produce(made, entry)

    def room(self) -> int:
        return self._window - max(len(self._in_order), self._unconfirmed)

    def wait_s(self) -> float:
        return POLL_S if self._unconfirmed else IDLE_S

    def settle(self) -> Sequence[int]:
        self._producer.poll(0)
        if self._failure is not None:
            raise self._failed()
        now = time.monotonic()
        if not self._unconfirmed:
            self._progress_at = now
        elif now - self._progress_at > STALLED_S:
            raise OperatorError(
                f"Kafka at {self._where()} has confirmed nothing for {now - self._progress_at:.0f} s; "
                "nothing is acknowledged until it does"
            )
        self._tell_status(now)
        mids = []
        while self._in_order and self._in_order[0].delivered:
            mids.append(self._in_order.popleft().message.mid)
        return [mid for mid in mids if mid]

    def finish(self) -> Sequence[int]:
        left = self._producer.flush(FINISH_S)
        if left:
            log.warning("Kafka did not confirm %d messages in time: the broker keeps them", left)
        self._progress_at = time.monotonic()
        return self.settle()

    def connection_ended(self) -> None:
        self._in_order.clear()

    # ---- Kafka

    def _make_producer(self) -> Producer:
        try:
            return Producer(self._config)
        except (KafkaException, ValueError) as problem:
            raise OperatorError(f"--kafka-option: {described(problem)}") from None

    def _where(self) -> str:
        return str(self._config["bootstrap.servers"])

    def _produce(self, made: Record, entry: OnTheWay) -> None:
        if made.dead:
            self._log_dead(entry.message.topic, made)
        report = functools.partial(self._reported, entry, made.dead)
        try:
            self._producer.produce(
                f"{self._prefix}.{made.kind}", made.value, made.key, headers=made.headers, on_delivery=report
            )
        except BufferError:
            raise OperatorError(f"Kafka at {self._where()}: the queue to it is full") from None
        except KafkaException as problem:
            if problem.args[0].code() in _TOO_LARGE and not made.dead:
                self._produce(self._too_large(entry, problem.args[0]), entry)
                return
            raise OperatorError(f"Kafka at {self._where()}: {described(problem)}") from None
        self._unconfirmed += 1

    def _reported(self, entry: OnTheWay, dead: bool, error: KafkaError | None, _: Message) -> None:
        """Kafka's delivery report, called from `poll`."""
        self._unconfirmed -= 1
        self._progress_at = time.monotonic()
        if error is None:
            entry.delivered = True
            self.counts.dead += dead
            self.counts.bridged += not dead
        elif error.code() in _TOO_LARGE and not dead:
            self._produce(self._too_large(entry, error), entry)
        else:
            self._failure = error

    def _too_large(self, entry: OnTheWay, error: KafkaError) -> Record:
        """Kafka will never take it: as a dead letter, much shorter."""
        message = entry.message
        made = dead_letter(message.topic, message.payload, f"Kafka refuses it: {error.str()}")
        return Record(made.kind, made.key, (made.value or b"")[:1024], made.headers)

    def _failed(self) -> OperatorError:
        """Kafka refused for good (rights, a fatal error): a new producer, and the broker sends again."""
        failure, self._failure = self._failure, None
        assert failure is not None
        self._producer.purge()
        self._producer.flush(1.0)
        self._unconfirmed, self._failure = 0, None
        self._producer = self._make_producer()
        return OperatorError(
            f"Kafka at {self._where()} refuses: {failure.str()}; nothing is acknowledged until it does not"
        )

    # ---- what it says

    def _log_dead(self, topic: str, made: Record) -> None:
        if self._to_log > 0:
            log.warning("dead letter from %r: %s", topic[:200], header(made.headers, "reason"))
        self._to_log -= 1

    def _tell_status(self, now: float) -> None:
        said, at = self._status
        if now - at < STATUS_S:
            return
        if str(self.counts) != said:
            log.info("%s", self.counts)
        self._status = (str(self.counts), now)
        self._to_log = DEAD_LOGGED
