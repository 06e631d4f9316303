"""How Kafka is reached, and which of librdkafka's properties a user may set; the rest is what the guarantees need."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from serving.errors import OperatorError

# What jetloop sets itself, and why nobody else does.
_RESERVED = {
    "bootstrap.servers": "give --kafka",
    "metadata.broker.list": "give --kafka",
    "group.id": "give --group",
    "acks": "an event is acknowledged when all replicas have it",
    "request.required.acks": "an event is acknowledged when all replicas have it",
    "enable.idempotence": "a retry must not write twice, nor out of order",
    "max.in.flight": "a retry must not change the order",
    "max.in.flight.requests.per.connection": "a retry must not change the order",
    "retries": "an event is tried until Kafka has it",
    "message.send.max.retries": "an event is tried until Kafka has it",
    "message.timeout.ms": "an event is tried until Kafka has it",
    "delivery.timeout.ms": "an event is tried until Kafka has it",
    "queue.buffering.max.messages": "give --window",
    "delivery.report.only.error": "the delivery report is what an acknowledgement waits for",
    "partitioner": "the events of a robot stay in one partition, in their order",
    "transactional.id": "no transaction is made",
    "enable.auto.commit": "offsets are committed after the store has the events",
    "enable.auto.offset.store": "offsets are committed after the store has the events",
    "auto.commit.interval.ms": "offsets are committed after the store has the events",
    "auto.offset.reset": "a new group begins with the oldest event",
    "test.mock.num.brokers": "it is no Kafka",
}
# librdkafka says each failed attempt to connect; kafka_errors.py says it once in a while.
_QUIET = {"reconnect.backoff.max.ms": 2000, "log_level": 2}


def kafka_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --kafka-option and --topics to a command, as the arguments `options` and `prefix`."""
    command = click.option(
        "--topics",
        "prefix",
        default="jetloop",
        show_default=True,
        help="Prefix of Kafka's topics: PREFIX.events, .metrics, .state, .dead.",
    )(command)
    return click.option(
        "--kafka-option",
        "options",
        multiple=True,
        envvar="JETLOOP_KAFKA_OPTIONS",
        metavar="KEY=VALUE",
        help="A property of librdkafka, such as security.protocol=SASL_SSL; again for each. Or, parted by blanks, in "
        "JETLOOP_KAFKA_OPTIONS, which other users of the machine cannot read: the place for sasl.password.",
    )(command)


def parse_options(options: Iterable[str]) -> dict[str, str]:
    """Reads KEY=VALUE.

    Raises:
        OperatorError: it is something else, or a property that would break a guarantee.
    """
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip()
        if not equals or not key:
            raise OperatorError(f"--kafka-option {option.split('=')[0]} is not KEY=VALUE")
        if key in _RESERVED:
            raise OperatorError(f"--kafka-option {key} cannot be set: {_RESERVED[key]}")
        found[key] = value
    return found


def producer_config(servers: str, options: Iterable[str], window: int) -> dict[str, Any]:
    """For a Producer that loses nothing, writes nothing twice and keeps the order of a key.

    Args:
        servers: HOST:PORT, several parted by commas.
        options: of the user, KEY=VALUE.
        window: messages that are on the way to Kafka at most.

    Raises:
        OperatorError: see `parse_options`.
    """
    defaults = {"linger.ms": 2, "compression.type": "lz4", **_QUIET}
    fixed = {
        "bootstrap.servers": servers,
        "acks": "all",
        "enable.idempotence": True,
        "message.timeout.ms": 0,  # for ever; the window bounds what waits
        "queue.buffering.max.messages": 2 * window + 1000,  # never full before the window is
        "partitioner": "murmur2_random",  # as Java's clients
    }
    return {**defaults, **parse_options(options), **fixed}


def consumer_config(servers: str, options: Iterable[str], group: str) -> dict[str, Any]:
    """For a Consumer whose offsets are committed by hand.

    Raises:
        OperatorError: see `parse_options`.
    """
    defaults = {
        "partition.assignment.strategy": "cooperative-sticky",
        **_QUIET,
        "session.timeout.ms": 10_000,  # a member that died is missed so soon
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 16384,  # of a partition, in memory at most
    }
    fixed = {
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
    }
    return {**defaults, **parse_options(options), **fixed}
