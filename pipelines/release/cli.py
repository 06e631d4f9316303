"""`jetloop release`: make the keys and the repository, run the service, see what is released."""

import os
import socket
from pathlib import Path

import click

from pipelines.release import cli_keys, cli_override, cli_rollout, export, targets
from serving.command_line import log_to_stderr
from serving.contracts.releases import CHANNELS, MODEL_NAME
from serving.errors import OperatorError
from telemetry.mqtt_options import parse_broker, tls_options

FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/release",
    show_default=True,
    help="Release folder: keys, repository, history.",
)


@click.group()
def group() -> None:
    """From an alias in MLflow to what the robots run: gates, compile, sign, publish.

    \b
    jetloop release init     once: keys and an empty repository
    jetloop release keys     which keys count: rotate, revoke, renew
    jetloop release export   a signed copy on a stick, for robots without a network
    jetloop release serve    the service that releases what people promote
    jetloop release status   what is released, what was refused and why, how far a rollout has come
    jetloop release pause | resume | promote | withdraw   a person's word on a rollout
    """


group.add_command(cli_keys.init)
group.add_command(cli_keys.group)
for _command in (cli_rollout.pause, cli_rollout.resume, cli_rollout.promote, cli_rollout.withdraw):
    group.add_command(_command)
group.add_command(export.export)
group.add_command(cli_override.command)
group.add_command(targets.command)


@group.command()
@FOLDER
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="http://127.0.0.1:5000",
    show_default=True,
    help="MLflow server; or MLFLOW_TRACKING_URI.",
)
@click.option("--model", default=MODEL_NAME, show_default=True, help="Registered model.")
@click.option(
    "--params",
    type=click.Path(path_type=Path, dir_okay=False),
    default="params.yaml",
    show_default=True,
    help="Its block `gates` holds the limits; read again when it changes.",
)
@click.option("--target", "targets", multiple=True, default=["cpu-ort-fp32"], show_default=True, help="Build for this.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    default=[",".join(CHANNELS)],
    show_default=True,
    help="Aliases that release, each to the ring of its name.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8400, show_default=True)
@click.option(
    "--mqtt", default="none", show_default=True, help="Broker that wakes robots, host:port or mqtts://host:port."
)
@tls_options
@click.option(
    "--store",
    default=None,
    help="Event store of the collector, such as sqlite:///build/events.db: a release reaches the robots step by step "
    "(block `rollout`) while they do well. Without it: all robots at once.",
)
@click.option(
    "--poll-s", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Looks at least this often."
)
@click.option("--webhook/--no-webhook", default=True, show_default=True, help="Have MLflow call when an alias is set.")
@click.option(
    "--webhook-url", default=None, help="How MLflow reaches this service.  [default: http://HOST:PORT/webhooks/mlflow]"
)
@click.option("--publish", default="", help="s3://bucket/prefix: publish there too; robots pull from its address.")
@click.option("--publish-endpoint", default="", help="URL of another S3 than Amazon's.")
def serve(
    folder: Path,
    tracking_uri: str,
    model: str,
    params: Path,
    targets: tuple[str, ...],
    channels: tuple[str, ...],
    host: str,
    port: int,
    mqtt: str,
    ca: str,
    certificate: str,
    key: str,
    store: str | None,
    poll_s: float,
    webhook: bool,
    webhook_url: str | None,
    publish: str,
    publish_endpoint: str,
) -> None:
    """Runs the release service until it is stopped: releases each version that people set an alias on.

    Reads the alias from MLflow (webhook, and polling as the fall-back), applies the gates of params.yaml, compiles for
    each target, signs and publishes into FOLDER, writes tags and a note back to the version, wakes the robots.

    \b
    Serves  /metadata /targets      the signed repository, what robots pull
            /api/releases /healthz  for people and the console

    Example: jetloop release serve --folder /srv/jetloop --tracking-uri http://mlflow:5000 --mqtt broker:1883
    """
    log_to_stderr()
    with listening(host, port) as listener:  # before the slow imports: a taken port is known at once
        from pipelines.release.serve import Options, run

        run(
            Options(
                folder=folder,
                tracking_uri=tracking_uri,
                model=model,
                params=params,
                targets=_split(targets),
                channels=_split(channels),
                mqtt=None if mqtt == "none" else parse_broker(mqtt, ca, certificate, key),
                store=store,
                poll_s=poll_s,
                webhook_url=(webhook_url or f"http://{host}:{port}/webhooks/mlflow") if webhook else None,
                publish=publish,
                publish_endpoint=publish_endpoint,
            ),
            listener,
        )


@group.command()
@FOLDER
def status(folder: Path) -> None:
    """Shows what FOLDER has released and refused, newest first, and until when its signatures are good."""
    from rich.console import Console
    from rich.table import Table

    from pipelines.release.database import Database
    from pipelines.release.journal import Journal
    from pipelines.release.keys import Keys
    from pipelines.release.listing import listing
    from pipelines.release.repository import Repository

    repository = Repository.open(folder, Keys({}))
    table = Table("channel", "sequence", "version", "status", "release", "when", "why")
    database = Database.open_to_read(folder)
    for entry in listing(Journal(database), repository) if database else ():
        table.add_row(
            entry["channel"],
            str(entry["sequence"] or "-"),
            entry["version"],
            "running" if entry["current"] else entry["status"],
            entry["release_id"],
            entry["issued_at"],
            entry["reason"],
        )
    console = Console()
    console.print(table if table.row_count else "nothing is released yet: set the alias champion in MLflow")
    for line in cli_rollout.status_lines(folder, repository):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for role, end in repository.expires().items():
        console.print(f"{role:<10} signed until {end:%Y-%m-%d %H:%M} UTC")


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        OperatorError: it is taken, or not an address of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # who comes before the service is ready waits
    except OSError as problem:
        listener.close()
        reason = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else str(problem)
        raise OperatorError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from None
    return listener


def _split(values: tuple[str, ...]) -> list[str]:
    """`--channel a,b --channel c` as [a, b, c], each once."""
    return list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))
