"""`jetloop bridge`: what the robots tell, from the MQTT broker to Kafka.

Here is the command; the work is in bridging.py.
"""

import re
import signal
import threading
from pathlib import Path

import click

from serving.command_line import log_to_stderr
from serving.contracts.events import ROOT
from serving.contracts.names import NAME_PATTERN
from serving.errors import OperatorError
from telemetry.kafka_options import kafka_options
from telemetry.messages import SUBSCRIPTIONS
from telemetry.metrics_options import metrics_options
from telemetry.mqtt_options import parse_broker, tls_options

CLIENT = "jetloop-bridge"


@click.command(short_help="Pass on what the robots tell from MQTT to Kafka.")
@click.option("--mqtt", default="127.0.0.1:1883", show_default=True, help="The broker, HOST:PORT or mqtts://HOST:PORT.")
@tls_options
@click.option("--kafka", default="127.0.0.1:9092", show_default=True, help="Kafka, HOST:PORT; several by commas.")
@kafka_options
@click.option(
    "--client-id",
    default=CLIENT,
    show_default=True,
    help="Under this name the broker keeps messages while the bridge is away: one bridge for one name.",
)
@click.option(
    "--site", "sites", multiple=True, help="Only this site's robots; again for each. The way to several bridges."
)
@click.option("--share", default="", help="Share all messages with the bridges of this group: MQTT 5, see below.")
@click.option(
    "--window",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 60_000),
    help="Messages on the way to Kafka at most; what is beyond stays with the broker.",
)
@click.option(
    "--partitions", default=6, show_default=True, type=click.IntRange(1), help="Of the topics, where they are made."
)
@click.option(
    "--spool",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what a robot sends that floods, so that the others need not wait.  [default: none]",
)
@metrics_options
def command(
    mqtt: str,
    ca: str,
    certificate: str,
    key: str,
    kafka: str,
    options: tuple[str, ...],
    prefix: str,
    client_id: str,
    sites: tuple[str, ...],
    share: str,
    window: int,
    partitions: int,
    spool: Path | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Passes events, metrics and states on from the MQTT broker to Kafka; runs until it is stopped.

    \b
    reads   jetloop/v1/+/+/event/+, .../metrics, .../state   over MQTT, QoS 1, persistent session
    writes  Kafka's topics PREFIX.events, .metrics, .state; PREFIX.dead with the reason for what is no event

    A message is acknowledged to the broker when Kafka has it on all replicas, so a crash here loses nothing. Records
    have the key SITE/ROBOT: a robot's events stay in their order.

    Several bridges, each with a --client-id of its own: by --site, which keeps every robot's order; or by --share NAME
    (MQTT 5: Mosquitto, not AMQ Classic), which divides message by message. The order of a robot's records is then not
    kept (the store goes by sequence), and what was for a bridge that is away waits for that one.

    \b
    jetloop bridge --mqtt 127.0.0.1:1883 --kafka 127.0.0.1:9092
    jetloop bridge --mqtt mqtts://broker.lab --ca ca.pem --certificate certificate.pem --key key.pem \\
        --kafka kafka-1:9093,kafka-2:9093 --kafka-option security.protocol=SSL --site lab --client-id bridge-lab
    """
    from telemetry.bridging import KafkaSink, log
    from telemetry.fair import fair
    from telemetry.kafka_options import parse_options, producer_config
    from telemetry.kafka_topics import make_topics
    from telemetry.mqtt_inlet import Inlet

    log_to_stderr()
    broker = parse_broker(mqtt, ca, certificate, key)
    topics = subscriptions(sites, share)
    sink = KafkaSink(producer_config(kafka, options, window), prefix, window)
    registry = None
    if metrics_port:
        from telemetry.metrics import BridgeMetrics, new_registry, serve_metrics

        registry = new_registry()
        registry.register(BridgeMetrics(lambda: (sink.counts.bridged, sink.counts.dead)))
        serve_metrics(registry, metrics_port, metrics_host)
    make_topics({**parse_options(options), "bootstrap.servers": kafka, "log_level": 2}, prefix, partitions)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("from %s to Kafka at %s, topics %s.*, at most %d on the way", broker, kafka, prefix, window)
    Inlet(broker, client_id, topics, fair(sink, spool, registry), window if share else None).run(stop)
    log.info("ended: %s", sink.counts)


def subscriptions(sites: tuple[str, ...], share: str) -> list[str]:
    """MQTT topic filters of a bridge.

    Raises:
        OperatorError: a site or the group's name is no name.
    """
    for name in (*sites, *filter(None, [share])):
        if not re.match(NAME_PATTERN, name):
            raise OperatorError(f"--site, --share: `{name}` is not letters, digits, dot, dash and underscore")
    topics = [topic.replace(f"{ROOT}/+", f"{ROOT}/{site}", 1) for site in (sites or ("+",)) for topic in SUBSCRIPTIONS]
    return [f"$share/{share}/{topic}" if share else topic for topic in topics]
