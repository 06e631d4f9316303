"""`jetloop release`: make the keys and the repository, run the service, see what is released."""

import os
import socket
from pathlib import Path

import click

from serving.command_line import log_to_stderr
from serving.contracts.releases import CHANNELS, MODEL_NAME
from serving.errors import OperatorError

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
    jetloop release serve    the service that releases what people promote
    jetloop release status   what is released, what was refused and why
    """


@group.command()
@FOLDER
def init(folder: Path) -> None:
    """Makes the signing keys and an empty signed repository in FOLDER. Overwrites nothing.

    \b
    FOLDER/metadata/root.json   copy it to every robot: it is what they trust
    FOLDER/keys/offline         root and targets: keep them elsewhere, needed about once a year
    FOLDER/keys/online          releases, snapshot, timestamp: the service signs with them
    """
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

    if (folder / "metadata").exists() or (folder / "keys").exists():
        raise OperatorError(
            f"{folder} holds keys or a repository already: nothing is overwritten, choose another --folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        keys = Keys.generate()
        keys.save(folder / "keys")
        Repository.create(folder, keys)
    except OSError as problem:
        raise OperatorError(f"{folder} cannot be written ({problem.strerror}): choose another --folder") from None
    click.echo(f"made    {folder}/metadata   an empty repository")
    click.echo(f"robots  copy {folder}/metadata/root.json to each: it is what they trust")
    click.echo(f"safe    move {folder}/keys/offline to a place that is not on this machine, and keep a second copy")


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
@click.option("--mqtt", default="none", show_default=True, help="host:port of the broker that wakes robots, or none.")
@click.option(
    "--poll-s", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Looks at least this often."
)
@click.option("--webhook/--no-webhook", default=True, show_default=True, help="Have MLflow call when an alias is set.")
@click.option(
    "--webhook-url", default=None, help="How MLflow reaches this service.  [default: http://HOST:PORT/webhooks/mlflow]"
)
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
    poll_s: float,
    webhook: bool,
    webhook_url: str | None,
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
                mqtt=mqtt,
                poll_s=poll_s,
                webhook_url=(webhook_url or f"http://{host}:{port}/webhooks/mlflow") if webhook else None,
            ),
            listener,
        )


@group.command()
@FOLDER
def status(folder: Path) -> None:
    """Shows what FOLDER has released and refused, newest first, and until when its signatures are good."""
    from rich.console import Console
    from rich.table import Table

    from pipelines.release.history import History, listing
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

    repository = Repository.open(folder, Keys({}))
    table = Table("channel", "sequence", "version", "status", "release", "when", "why")
    for entry in listing(History(folder / "history.json"), repository):
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
