"""The options --metrics-port and --metrics-host of the commands that serve /metrics. The metrics are in metrics.py."""

from collections.abc import Callable
from typing import Any

import click


def metrics_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds both to a command."""
    host = click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        help="Address of /metrics; it asks for no name.",
    )
    port = click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve /metrics for Prometheus here.")
    return port(host(command))
