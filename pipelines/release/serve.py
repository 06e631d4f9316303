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
from pipelines.release.builds import Builds
from pipelines.release.builds_web import build_routes
from pipelines.release.database import Database
from pipelines.release.journal import import_history
from pipelines.release.keys import Keys
from pipelines.release.listing import listing
from pipelines.release.publish_s3 import Bucket
from pipelines.release.repository import Repository
from pipelines.release.rollout_reports import Reports
from pipelines.release.rollout_rules import RolloutRules
from pipelines.release.rollout_service import Rollouts
from pipelines.release.rollout_table import RolloutTable
from pipelines.release.runner import Runner
from pipelines.release.service import Records, Service, Wanted
from pipelines.release.wakeup import Bell
from pipelines.release.web import create_app
from serving.contracts.names import NAME_PATTERN
from serving.errors import OperatorError
from telemetry.mqtt_options import Broker

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
    mqtt: Broker | None  # that wakes robots
    poll_s: float
    webhook_url: str | None  # None: polling alone
    store: str | None = None  # of the collector; None: releases go to all robots at once
    publish: str = ""  # s3://bucket/prefix, in addition to the folder
    publish_endpoint: str = ""  # of another S3 than Amazon's


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
    bell = Bell(options.mqtt) if options.mqtt else None
    bucket = Bucket(options.publish, options.publish_endpoint) if options.publish else None
    _check_folder(options.folder)
    with durable.locked(options.folder / "lock"):
        repository = Repository.open(options.folder, Keys.load(options.folder / "keys"), bucket)
        repository.sweep()
        _serve(options, listener, repository, limits, bell)


def _serve(
    options: Options, listener: socket.socket, repository: Repository, limits: "Limits", bell: Bell | None
) -> None:
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from pipelines.release.registry import Registry  # imports mlflow, after its settings

    registry = Registry(options.tracking_uri, options.model)
    database = Database.open(options.folder)
    import_history(database, options.folder / "history.json")
    records = Records.of(options.folder, database)
    records.staging.sweep()
    wanted = Wanted(options.channels, options.targets, limits)
    builds = Builds(options.folder)
    builds.sweep()
    ring = bell.ring if bell else lambda channel: None
    rollouts = Rollouts(
        repository,
        RolloutTable(options.folder),
        RolloutRules(options.params),
        Reports(options.store) if options.store else None,
        ring,
    )
    service = Service(registry, repository, records, wanted, ring, builds, rollouts)
    secret = webhook.secret_in(options.folder / "webhook.secret") if options.webhook_url else None
    register: Callable[[], None] | None = None
    if options.webhook_url and secret:
        register = functools.partial(webhook.register, registry.client, options.webhook_url, secret)
    runner = Runner(service, repository, options.poll_s, register)

    def told(delivery: webhook.Delivery) -> None:
        records.aliases.hear(delivery.delivery_id, delivery.alias, delivery.version)
        runner.wake()

    app = create_app(
        options.folder,
        told,
        secret,
        options.model,
        lambda: listing(records.journal, repository),
        runner.health,
        build_routes(builds, limits, runner.wake),
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
        database.close()
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
