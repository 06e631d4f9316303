"""`jetloop collector`: what the robots tell, from the MQTT broker or from Kafka into the store, each event once.

Here is the command; the work is in mqtt_inlet.py or collecting_kafka.py, and collecting.py.
"""

import signal
import threading
from pathlib import Path

import click

from serving.command_line import log_to_stderr
from serving.errors import OperatorError
from telemetry.kafka_options import kafka_options
from telemetry.messages import COLLECTOR, SUBSCRIPTIONS
from telemetry.metrics_options import metrics_options
from telemetry.mqtt_options import parse_broker, tls_options

_MQTT = "127.0.0.1:1883"


@click.command(short_help="Store what the robots tell, each event once.")
@click.option("--mqtt", help=f"The MQTT broker, HOST:PORT or mqtts://HOST:PORT.  [default: {_MQTT}]")
@tls_options
@click.option("--kafka", help="Read from Kafka at HOST:PORT instead, where `jetloop bridge` writes.")
@click.option("--group", default=COLLECTOR, show_default=True, help="Kafka consumers of one group share the work.")
@kafka_options
@click.option("--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store.")
@click.option(
    "--client-id",
    default=COLLECTOR,
    show_default=True,
    help="With MQTT: under this name the broker keeps messages while the collector is away: one collector, one name.",
)
@click.option(
    "--spool",
    type=click.Path(path_type=Path, file_okay=False),
    help="With MQTT: folder for what a robot sends that floods.  [default: beside SQLite's file; else none]",
)
@metrics_options
def command(
    mqtt: str | None,
    ca: str,
    certificate: str,
    key: str,
    kafka: str | None,
    group: str,
    options: tuple[str, ...],
    prefix: str,
    url: str,
    client_id: str,
    spool: Path | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Takes the robots' events, metrics and states into the store; runs until it is stopped.

    \b
    reads   jetloop/v1/+/+/event/+, .../metrics, .../state   over MQTT 3.1.1, QoS 1, persistent session
            or, with --kafka, the topics of `jetloop bridge`, in a consumer group
    writes  STORE   tables events, robots, rejected
            SPOOL   what a robot sends that floods (over 1,000 messages a second), until there is room for it

    A message is acknowledged (Kafka: its offset is committed) after the commit that stored it, or once the spool on
    disk has it, so nothing that the broker has is lost by a crash or a restart here. What is not an event goes to the
    table `rejected`, with the reason.

    \b
    jetloop collector --mqtt 127.0.0.1:1883 --store sqlite:///build/events.db
    jetloop collector --mqtt mqtts://broker.lab --ca ca.pem --certificate certificate.pem --key key.pem
    jetloop collector --kafka kafka-1:9092 --group collectors --store postgresql+psycopg://jetloop@db/jetloop
    """
    if mqtt and kafka:
        raise OperatorError("--mqtt and --kafka: give one of them, an event takes one way")
    if kafka and (ca or certificate):
        raise OperatorError("--ca and --certificate are for MQTT; for Kafka: --kafka-option ssl.ca.location=ca.pem")
    if kafka and spool:
        raise OperatorError("--spool is for MQTT: Kafka keeps what comes")
    from telemetry.collecting import Intake, StoreSink, log
    from telemetry.store import open_store

    log_to_stderr()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    broker = parse_broker(mqtt or _MQTT, ca, certificate, key)
    store = open_store(url)
    registry = metrics = None
    if metrics_port:
        from telemetry.metrics import CollectorMetrics, new_registry, serve_metrics

        registry = new_registry(url)
        metrics = CollectorMetrics(registry)
        serve_metrics(registry, metrics_port, metrics_host)
    intake = Intake(store, metrics)
    if metrics:
        metrics.watch(lambda: len(intake))
    try:
        if kafka:
            from telemetry.collecting_kafka import KafkaCollector
            from telemetry.kafka_options import consumer_config

            collector = KafkaCollector(intake, consumer_config(kafka, options, group), prefix)
            log.info("storing into %s, from Kafka at %s in the group `%s`", store.name, kafka, group)
            collector.run(stop)
        else:
            from telemetry.fair import fair
            from telemetry.mqtt_inlet import Inlet

            log.info("storing into %s, from %s as `%s`", store.name, broker, client_id)
            sink = fair(StoreSink(intake), spool or _beside(url), registry)
            Inlet(broker, client_id, SUBSCRIPTIONS, sink).run(stop)
        log.info("ended: %s", intake.counts)
    finally:
        store.close()


def _beside(url: str) -> Path | None:
    """The spool of a store that is a file; it belongs to that store, as it is acknowledged and not stored."""
    from sqlalchemy import make_url

    parsed = make_url(url)
    return Path(f"{parsed.database}.spool") if parsed.get_backend_name() == "sqlite" else None
