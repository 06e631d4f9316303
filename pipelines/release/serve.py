"""Puts the release service together: lock, repository, registry, loop, web server; and takes it apart again."""

import functools
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from pipelines.params import GateParams, block
from pipelines.release import durable, webhook
from pipelines.release.build import builder_of
from pipelines.release.history import History, listing
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from pipelines.release.runner import Runner
from pipelines.release.service import Service, Wanted
from pipelines.release.wakeup import Bell
from pipelines.release.web import create_app
from serving.contracts.names import NAME_PATTERN
from serving.errors import OperatorError

log = logging.getLogger(__name__)

# The loop here retries and says so; MLflow's own retries would hide an outage for minutes.
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Options:
    """The options of `jetloop release serve`."""

    folder: Path
    tracking_uri: str
    model: str
    params: Path
    targets: list[str]
    channels: list[str]
    mqtt: str  # host:port or none
    poll_s: float
    webhook_url: str | None  # None: polling alone


def run(options: Options, listener: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        listener: bound to the address to serve on.

    Raises:
        OperatorError: an option, params.yaml, the folder or the keys are wrong, or another service holds the folder.
    """
    for name in options.channels:
        if not re.match(NAME_PATTERN, name):
            raise OperatorError(f"--channel {name}: letters, digits, dot, dash and underscore only")
    for target in options.targets:
        builder_of(target)
    limits = Limits(options.params, options.targets)
    bell = Bell.parse(options.mqtt)
    _check_folder(options.folder)
    with durable.locked(options.folder / "lock"):
        repository = Repository.open(options.folder, Keys.load(options.folder / "keys"))
        repository.sweep()
        _serve(options, listener, repository, limits, bell)


def _serve(
    options: Options, listener: socket.socket, repository: Repository, limits: "Limits", bell: Bell | None
) -> None:
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from pipelines.release.registry import Registry  # imports mlflow, after its settings

    registry = Registry(options.tracking_uri, options.model)
    history = History(options.folder / "history.json")
    wanted = Wanted(options.channels, options.targets, limits)
    service = Service(registry, repository, history, wanted, ring=bell.ring if bell else lambda channel: None)
    secret = webhook.secret_in(options.folder / "webhook.secret") if options.webhook_url else None
    register: Callable[[], None] | None = None
    if options.webhook_url and secret:
        register = functools.partial(webhook.register, registry.client, options.webhook_url, secret)
    runner = Runner(service, repository, options.poll_s, register)
    app = create_app(
        options.folder, runner.wake, secret, options.model, lambda: listing(history, repository), runner.health
    )
    if bell:
        for channel in repository.channels():
            bell.ring(channel)
        bell.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has ended
    runner.start()
    log.info("serving %s on %s:%d", options.folder, *listener.getsockname()[:2])
    try:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        server.run(sockets=[listener])
    finally:
        runner.stop()
        if bell:
            bell.stop()


class Limits:
    """The block `gates` of params.yaml, read again when the file changes; a broken edit keeps the limits before it."""

    def __init__(self, path: Path, targets: list[str]) -> None:
        """Raises OperatorError: the file is missing or wrong, or sets no latency limit for a target."""
        self._path = path
        self._targets = targets
        self._limits = self._read()
        self._content = path.read_bytes()

    def __call__(self) -> GateParams:
        """The limits in force."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        if content != self._content:
            self._content = content  # also when it is broken: one line an edit is enough
            try:
                self._limits = self._read()
                log.info("%s has changed: its gates are in force", self._path)
            except OperatorError as problem:
                log.warning("%s: the gates stay as they were", problem)
        return self._limits

    def _read(self) -> GateParams:
        limits = block(GateParams, self._path)
        for target in self._targets:
            if target not in limits.max_latency_ms:
                raise OperatorError(f"{self._path}: gates.max_latency_ms has no limit for the target {target}: add one")
        return limits


def _check_folder(folder: Path) -> None:
    if not (folder / "metadata" / "timestamp.json").exists():
        raise OperatorError(
            f"{folder} holds no release repository: make one with `jetloop release init --folder {folder}`"
        )
    if not os.access(folder, os.W_OK) or not os.access(folder / "metadata", os.W_OK):
        raise OperatorError(f"{folder} is not writable by this user: mend its rights or choose another --folder")
