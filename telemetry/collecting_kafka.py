"""From Kafka into the store: the collector as a member of a consumer group.

Offsets are committed after the store has the batch; between the two a crash brings the batch again, and the store
leaves out what it has. A batch is stored and committed before the next one is fetched, so when a partition goes to
another member little of it is in hand here, and that is stored first; what the store does not take is dropped, and the
partition's new owner gets it.
"""

import logging
import threading
import time
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from serving.backoff import backoff_s
from serving.errors import OperatorError
from telemetry.collecting import BATCH_MESSAGES, BATCH_S, IDLE_S, Intake
from telemetry.kafka_errors import Complaints, described
from telemetry.kafka_topics import DEAD, KINDS, header

log = logging.getLogger("jetloop.collector")

RETRY_MIN_S, RETRY_MAX_S = 0.7, 15.0
ALIVE_S = 0.5  # while the store takes nothing: so often Kafka hears that this member lives


class KafkaCollector:
    """One member of a consumer group, and one store.

    Args:
        intake: to the store.
        config: of librdkafka's consumer, see `kafka_options.consumer_config`.
        prefix: of the topics.

    Raises:
        OperatorError: a property is wrong.
    """

    def __init__(self, intake: Intake, config: dict[str, Any], prefix: str) -> None:
        self._intake = intake
        self._complain = Complaints(config["bootstrap.servers"], log)
        self._config = {**config, "logger": log, "error_cb": self._complain}
        self._dead = f"{prefix}.{DEAD}"
        self._topics = [f"{prefix}.{kind}" for kind in KINDS]
        self._next: dict[tuple[str, int], int] = {}  # (topic, partition) of what is in the intake -> the next offset
        self._dropped = False  # what was in hand: it must be fetched again
        self._consumer = self._make_consumer()

    def run(self, stop: threading.Event) -> None:
        """Collects until `stop` is set."""
        try:
            while not stop.is_set():
                self._fetch()
                self._store(stop)
                if self._dropped:
                    self._consumer.close()
                    self._consumer, self._dropped = self._make_consumer(), False
        finally:
            self._consumer.close()  # leaves the group at once, so that others take over

    def _make_consumer(self) -> Consumer:
        try:
            made = Consumer(self._config)
            made.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        except (KafkaException, ValueError) as problem:
            raise OperatorError(f"--kafka-option: {described(problem)}") from None
        return made

    def _fetch(self) -> None:
        """The next batch: as soon as something is there, and what comes within BATCH_S."""
        first = self._consumer.poll(IDLE_S)
        if first is None:
            self._intake.tell_status()
            return
        self._take(first)
        for message in self._consumer.consume(BATCH_MESSAGES - 1, BATCH_S if len(self._intake) else 0):
            self._take(message)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._complain(error)
            return
        headers, value = message.headers(), message.value() or b""
        if message.topic() == self._dead:
            self._intake.reject(header(headers, "mqtt-topic"), value, header(headers, "reason") or "a dead letter")
        else:
            self._intake.add(header(headers, "mqtt-topic"), value)
        self._next[str(message.topic()), int(message.partition() or 0)] = int(message.offset() or 0) + 1

    def _store(self, stop: threading.Event) -> None:
        """Commits to the store, then to Kafka; while the store takes nothing, stays in the group and waits."""
        failures = 0
        while self._next and not stop.is_set():
            try:
                self._commit()
            except OperatorError as problem:
                failures += 1
                pause_s = backoff_s(failures, RETRY_MIN_S, RETRY_MAX_S)
                log.warning("%s; trying again in %.1f s", problem, pause_s)
                self._stay(stop, pause_s)
        if failures and not stop.is_set():
            self._consumer.resume(self._consumer.assignment())

    def _stay(self, stop: threading.Event, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        while self._next and not stop.is_set() and time.monotonic() < until:
            self._consumer.pause(self._consumer.assignment())
            message = self._consumer.poll(min(ALIVE_S, pause_s))
            if message is not None:  # fetched before the pause: it goes to the end of the batch
                self._take(message)

    def _commit(self) -> None:
        """Raises OperatorError: the store cannot take it now; it stays in hand."""
        self._intake.commit()
        offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in self._next.items()]
        self._next = {}
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as problem:
            # The store has them. Who gets these partitions next reads them again, and the store leaves them out.
            log.warning("offsets were not committed (%s): these events come again", described(problem))

    # ---- called by librdkafka, from poll, consume and close

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("reads %s", _listed(partitions) or "nothing new")

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("gives back %s", _listed(partitions))
        self._let_go()

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("lost %s: Kafka had not heard of this collector for too long", _listed(partitions))
        self._let_go()

    def _let_go(self) -> None:
        """Commits what is in hand before partitions go to another member, or drops it."""
        try:
            if self._next:
                self._commit()
        except OperatorError as problem:
            log.warning("%s; who gets the partitions stores what was in hand", problem)
            self._intake.drop()
            self._next, self._dropped = {}, True


def _listed(partitions: list[TopicPartition]) -> str:
    return ", ".join(f"{one.topic}[{one.partition}]" for one in partitions)
