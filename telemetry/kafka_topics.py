"""Kafka's topics, and an MQTT message as a Kafka record and back. The bridge writes these, the collector reads them.

| topic | key | value | headers |
| --- | --- | --- | --- |
| PREFIX.events, PREFIX.metrics | site/robot | the event as the robot sent it | mqtt-topic, content-type |
| PREFIX.state | site/robot | the state; none when the robot was taken off the broker | mqtt-topic |
| PREFIX.dead | the MQTT topic | the payload, its beginning if it is long | mqtt-topic, reason, payload-bytes |

Events are CloudEvents in Kafka's structured mode. PREFIX.state may be compacted.
"""

from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from serving.contracts.events import MAX_PAYLOAD_BYTES, Event
from serving.errors import OperatorError, RejectedError
from telemetry.kafka_errors import described
from telemetry.messages import parse

EVENTS, METRICS, STATE, DEAD = "events", "metrics", "state", "dead"
KINDS = (EVENTS, METRICS, STATE, DEAD)
_CLOUD_EVENT = b"application/cloudevents+json; charset=utf-8"
_KEY_BYTES = 1000  # of a dead letter's MQTT topic
_ADMIN_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Record:
    """What is written to Kafka."""

    kind: str
    key: bytes
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]

    @property
    def dead(self) -> bool:
        return self.kind == DEAD


def record(topic: str, payload: bytes) -> Record:
    """The record of an MQTT message; of one that is no event, a dead letter with the reason."""
    try:
        parsed = parse(topic, payload)
    except RejectedError as problem:
        return dead_letter(topic, payload, str(problem))
    key = f"{parsed.site}/{parsed.robot}".encode()
    headers: list[tuple[str, str | bytes | None]] = [("mqtt-topic", topic.encode())]
    if not isinstance(parsed, Event):
        return Record(STATE, key, payload or None, headers)
    kind = METRICS if parsed.type == "metrics" else EVENTS
    return Record(kind, key, payload, [*headers, ("content-type", _CLOUD_EVENT)])


def dead_letter(topic: str, payload: bytes, reason: str) -> Record:
    """A message that is no event."""
    named = topic.encode(errors="replace")[:_KEY_BYTES]
    headers: list[tuple[str, str | bytes | None]] = [
        ("mqtt-topic", named),
        ("reason", reason.encode(errors="replace")),
        ("payload-bytes", str(len(payload)).encode()),
    ]
    return Record(DEAD, named, payload[:MAX_PAYLOAD_BYTES], headers)


def header(headers: Any, name: str) -> str:
    """One header of a Kafka message as text; empty when it is missing."""
    for key, value in headers or []:
        if key == name:
            return value.decode(errors="replace") if isinstance(value, bytes) else (value or "")
    return ""


def make_topics(config: dict[str, Any], prefix: str, partitions: int) -> None:
    """Makes the topics that are not there yet, with the cluster's own number of replicas.

    Args:
        config: of librdkafka, to reach Kafka.
        partitions: of each new topic; as many collectors can share the work.

    Raises:
        OperatorError: Kafka cannot be reached, or does not let us.
    """
    try:
        client = AdminClient(config)
        there = client.list_topics(timeout=_ADMIN_TIMEOUT_S).topics
        missing = [kind for kind in KINDS if f"{prefix}.{kind}" not in there]
        if not missing:
            return
        made = client.create_topics([_topic(prefix, kind, partitions) for kind in missing])
        for future in made.values():
            try:
                future.result(_ADMIN_TIMEOUT_S)
            except KafkaException as problem:
                if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another bridge was quicker
                    raise
    except (KafkaException, ValueError) as problem:
        raise OperatorError(
            f"Kafka at {config['bootstrap.servers']}: no topics {prefix}.*: {described(problem)}; start it, or make "
            f"{', '.join(f'{prefix}.{kind}' for kind in KINDS)} yourself if this user may not"
        ) from None


def _topic(prefix: str, kind: str, partitions: int) -> NewTopic:
    compacted = {"cleanup.policy": "compact"} if kind == STATE else {}
    return NewTopic(f"{prefix}.{kind}", partitions, config=compacted)
