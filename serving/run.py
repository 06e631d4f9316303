"""`jetloop-robot run`: the command; the daemon that it runs is daemon.py."""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import click

from serving.command_line import log_to_stderr
from serving.config import load
from serving.daemon import Daemon

log = logging.getLogger("robot")

_CLOSE_WITHIN_S = 1.5
# Python's 5 ms would be the control thread's wait for any busy other one; a decision takes less.
_SWITCH_INTERVAL_S = 0.0005


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def command(config_path: Path, log_level: str) -> None:
    """Run the robot: camera, model, motors, updates and events.

    Reads robot.toml; keeps everything it must remember in robot.state_dir; logs to stderr. Without a model the robot
    stands still until a release comes. SIGTERM or Ctrl-C stop the motors and end it within two seconds.

    Example: jetloop-robot run --config robot.toml
    """
    config = load(config_path)
    log_to_stderr(log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with Daemon(config) as daemon:
        daemon.run(until=stop)
        log.info("stopping")
        _end_in_time()
    log.info("stopped")


def _end_in_time() -> None:
    """Ends the process when a part does not close; the motors, closed first, stand still by then."""

    def end() -> None:
        log.warning("not everything closed within %.1f s; leaving", _CLOSE_WITHIN_S)
        os._exit(0)

    timer = threading.Timer(_CLOSE_WITHIN_S, end)
    timer.daemon = True
    timer.start()
