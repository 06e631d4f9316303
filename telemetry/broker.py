"""`jetloop broker`: an MQTT broker for a lab bench and for `make demo`, in one process, with nothing to install.

Here is the command; what is done to amqtt so that no acknowledged event is lost is in embedded_broker.py. Below it are
the commands for a real broker: `certs` (certs.py) and `config` (mosquitto.py).
"""

import asyncio
import ipaddress
import logging
import signal

import click

from serving.command_line import LazyGroup, log_to_stderr
from serving.errors import OperatorError
from telemetry.listening import refuse_taken_port
from telemetry.messages import COLLECTOR, SUBSCRIPTIONS

log = logging.getLogger("jetloop.broker")

# Said at each look of a port scan or a health check, with nothing behind it.
_HARMLESS = ("No data from", "Failed to initialize client session", "[MQTT-3.1.0-1]", "Broker startup failed")


FOR_A_FLEET = {
    "certs": ("telemetry.certs:group", "A local authority, and certificates for broker, robots, services."),
    "config": ("telemetry.mosquitto:command", "Write mosquitto.conf and the access list for a fleet."),
}


@click.group(
    cls=LazyGroup,
    commands_at=FOR_A_FLEET,
    invoke_without_command=True,
    short_help="Start the embedded MQTT broker, for a lab bench.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=1883, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--keep-for",
    default=COLLECTOR,
    show_default=True,
    help="Client id of the collector: what robots send before it first connects waits for it. Empty: for nobody.",
)
@click.option(
    "--allow-anonymous-network",
    is_flag=True,
    help="Listen on an address that other machines reach, although anyone may then read and write everything.",
)
@click.pass_context
def command(context: click.Context, host: str, port: int, keep_for: str, allow_anonymous_network: bool) -> None:
    """Starts an MQTT 3.1.1 broker and runs until it is stopped (Ctrl-C, SIGTERM).

    It keeps retained messages, last wills and the messages of clients that are away, all in memory: a restart
    forgets them. It has no users and no TLS: for a fleet run Mosquitto or AMQ, since jetloop speaks plain MQTT 3.1.1;
    `certs` and `config` make what a Mosquitto needs.

    \b
    jetloop broker --port 1883
    jetloop collector --mqtt 127.0.0.1:1883 --store sqlite:///build/events.db
    """
    if context.invoked_subcommand is not None:
        return
    log_to_stderr()
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.getLogger("amqtt").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().startswith(_HARMLESS))
    if not allow_anonymous_network:
        refuse_network(host)
    refuse_taken_port(host, port)
    asyncio.run(_run(host, port, keep_for))


def refuse_network(host: str) -> None:
    """Lets loopback addresses pass.

    Raises:
        OperatorError: other machines could reach this broker, which asks nobody for a password.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise OperatorError(
            f"this broker has no authentication, and {host} is not a loopback address: run Mosquitto or AMQ for a "
            "network, or give --allow-anonymous-network if everyone who reaches this machine may command the robots"
        )


async def _run(host: str, port: int, keep_for: str) -> None:
    from telemetry import embedded_broker

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def listening() -> None:
        log.info("listening on mqtt://%s:%s (MQTT 3.1.1, no authentication, nothing kept over a restart)", host, port)

    try:
        await embedded_broker.serve(host, port, stop, on_listening=listening, keep_for=keep_for, topics=SUBSCRIPTIONS)
    except embedded_broker.AMQTTError as problem:
        raise OperatorError(f"the broker could not listen on {host}:{port}: {problem}") from None
    log.info("stopped")
