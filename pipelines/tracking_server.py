"""`jetloop mlflow`: the MLflow server that people open to compare runs and to set the alias `champion`.

This is the real `mlflow server` over SQLite with served artifacts; here are only its settings. The default folder is
the store that `dvc repro` writes to when no MLFLOW_TRACKING_URI is set, so runs made without a server show up in it.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Dict, List

import click

from serving.errors import OperatorError

ENVIRONMENT_FILE = Path(__file__).resolve().parent.parent / "mlflow" / "server.env"
SECRET_KEY_FILE = "webhook-secret.key"  # what the secrets of webhooks are encrypted with in mlflow.db
SECRET_KEY_VARIABLE = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


@click.command(short_help="Start the MLflow server: compare runs, set the alias champion.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--folder",
    default="build/mlflow",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where runs, models and artifacts are kept: mlflow.db and artifacts/.",
)
def command(host: str, port: int, folder: Path) -> None:
    """Starts the MLflow server and runs until it is stopped (Ctrl-C).

    \b
    reads   mlflow/server.env   settings; a variable that is already set wins
    writes  FOLDER/mlflow.db    runs, registered models, aliases, webhooks
            FOLDER/artifacts/   figures and models

    With the default folder it shows what `dvc repro` logged without a server. To log to it from anywhere:

    \b
    jetloop mlflow --port 5000
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 dvc repro
    """
    refuse_taken_port(host, port)
    folder = prepare(folder)
    environment = {**read_environment(ENVIRONMENT_FILE), SECRET_KEY_VARIABLE: secret_key(folder), **os.environ}
    click.echo(f"MLflow: http://{host}:{port}  (store: {folder})")
    sys.stdout.flush()
    # This process becomes the server, which passes signals on to its worker: ending `jetloop mlflow` ends it all.
    os.execve(sys.executable, server_command(host, port, folder), environment)


def server_command(host: str, port: int, folder: Path) -> List[str]:
    """The command line of the server over the store in `folder` (absolute)."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", (folder / "artifacts").as_uri()),
        *("--host", host, "--port", str(port)),
        *("--workers", "1"),  # starts in half the time, and SQLite has one writer anyway
        *("--uvicorn-opts", "--timeout-graceful-shutdown 5"),
    ]


def prepare(folder: Path) -> Path:
    """Makes the store's folder and returns its absolute path.

    Raises:
        OperatorError: it cannot be written.
    """
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OperatorError(f"{folder} cannot be made ({problem.strerror}); choose another --folder") from None
    if not os.access(folder, os.W_OK):
        raise OperatorError(f"{folder} cannot be written; give yourself the right to, or choose another --folder")
    return folder.resolve()


def refuse_taken_port(host: str, port: int) -> None:
    """Says so in one line before the server, which takes seconds to start, says it in many.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no obstacle
            probe.bind(address)
    except OSError as problem:
        raise OperatorError(
            f"cannot listen on {host}:{port} ({problem.strerror}); stop what uses it or choose another with --port"
        ) from None


def read_environment(path: Path) -> Dict[str, str]:
    """Reads `NAME=value` lines; blank lines and lines that start with # are skipped.

    Raises:
        OperatorError: the file is missing, or a line is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as problem:
        raise OperatorError(f"{path} cannot be read ({problem.strerror}); run from a checkout of jetloop") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise OperatorError(f"{path}:{number}: `{text}` is not NAME=value; mend the line or begin it with #")
        found[name] = value
    return found


def secret_key(folder: Path) -> str:
    """The key for the secrets of webhooks, made once per store: without it they cannot be read after a restart."""
    path = folder / SECRET_KEY_FILE
    if not path.exists():
        from cryptography.fernet import Fernet

        draft = path.with_suffix(f".{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(Fernet.generate_key())
        os.replace(draft, path)
    return path.read_text(encoding="ascii").strip()
