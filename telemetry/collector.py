"""`jetloop collector`: what the robots tell, from the broker into the store, each event once.

Here is the command; the work is in collecting.py.
"""

import signal
import threading

import click

from serving.command_line import log_to_stderr
from serving.errors import OperatorError
from telemetry.messages import COLLECTOR


@click.command(short_help="Store what the robots tell, each event once.")
@click.option("--mqtt", "broker", default="127.0.0.1:1883", show_default=True, help="The MQTT broker, HOST:PORT.")
@click.option("--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store.")
@click.option(
    "--client-id",
    default=COLLECTOR,
    show_default=True,
    help="Under this name the broker keeps messages while the collector is away: one collector, always the same name.",
)
def command(broker: str, url: str, client_id: str) -> None:
    """Takes the robots' events, metrics and states from the broker into the store; runs until it is stopped.

    \b
    reads   jetloop/v1/+/+/event/+, .../metrics, .../state   over MQTT 3.1.1, QoS 1, persistent session
    writes  STORE   tables events, robots, rejected

    A message is acknowledged after its commit, so nothing that the broker has is lost by a crash or a restart here.
    What is not an event goes to the table `rejected`, with the reason.

    \b
    jetloop collector --mqtt 127.0.0.1:1883 --store sqlite:///build/events.db
    """
    from telemetry.collecting import Collector
    from telemetry.store import open_store

    log_to_stderr()
    host, port = address(broker)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = open_store(url)
    try:
        Collector(store, host, port, client_id).run(stop)
    finally:
        store.close()


def address(text: str) -> tuple[str, int]:
    """Splits HOST:PORT; the port is 1883 when it is left out.

    Raises:
        OperatorError: this is no address.
    """
    host, _, port = text.removeprefix("mqtt://").rpartition(":") if ":" in text else (text, "", "1883")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OperatorError(f"--mqtt {text} is not HOST:PORT, such as 127.0.0.1:1883")
    return host.strip("[]"), int(port)
