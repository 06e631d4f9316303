"""`jetloop console`: the web page for the people who watch the fleet: robots, events, releases, origins.

Here is the command. feed.py and reads.py ask the store and the release service; fleet.py, robot_page.py,
events_page.py, releases_page.py and charts.py make HTML of what they say; shell.py and pages.py put it on pages and
keep them current; access.py and login.py are who may look.
"""

import ipaddress
import logging
import signal
from pathlib import Path

import click

from serving.command_line import log_to_stderr
from serving.errors import OperatorError
from telemetry.console import user
from telemetry.listening import listening_socket
from telemetry.metrics_options import metrics_options

log = logging.getLogger("jetloop.console")


@click.group(invoke_without_command=True, short_help="The web page: robots, live events, releases.")
@click.option("--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store.")
@click.option(
    "--releases", "releases_url", default="http://127.0.0.1:8400", show_default=True, help="The release service."
)
@click.option("--mlflow", "mlflow_url", default="", help="Address of MLflow: links, and nearest training images.")
@click.option(
    "--data-docs",
    default="build/validate/docs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The data-quality report of the stage validate.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--users",
    "users_file",
    envvar="JETLOOP_CONSOLE_USERS",
    type=click.Path(path_type=Path),
    help="Who may sign in (`jetloop console user add`).",
)
@click.option("--trust-header", default="", help="In which a proxy names the user, such as X-Forwarded-User.")
@click.option("--trusted-proxy", "proxies", multiple=True, help="Network of that proxy, such as 10.0.0.5/32.")
@metrics_options
@click.pass_context
def command(
    context: click.Context,
    url: str,
    releases_url: str,
    mlflow_url: str,
    data_docs: Path,
    host: str,
    port: int,
    users_file: Path | None,
    trust_header: str,
    proxies: tuple[str, ...],
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Serves the console and runs until it is stopped.

    \b
    reads   STORE                      what the collector stored
            RELEASES/api/releases      what the release service decided
    writes  STORE, table notes         what operators write beside robots and events

    On this machine alone nobody is asked who they are. For a network, add --users FILE, or let a proxy that
    authenticates name the user; put a proxy with TLS in front of it in both cases. Nothing comes from the internet.

    \b
    jetloop console --store sqlite:///build/events.db --releases http://127.0.0.1:8400 --mlflow http://127.0.0.1:5000
    jetloop console user add ann --role operator --users users.json
    jetloop console --host 0.0.0.0 --users users.json
    jetloop console --host 0.0.0.0 --trust-header X-Forwarded-User --trusted-proxy 10.0.0.5/32
    """
    if context.invoked_subcommand:
        return
    log_to_stderr()
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each time that the store is looked at
    listener = listening_socket(host, port)

    import uvicorn

    from telemetry.console.access import Access
    from telemetry.console.feed import Feed
    from telemetry.console.pages import Console, make_app
    from telemetry.metrics import new_registry, serve_metrics
    from telemetry.notes import Notes
    from telemetry.users import Users

    access = Access(
        users=Users(users_file) if users_file else None,
        header=trust_header,
        proxies=[_network(one) for one in proxies],
        local=ipaddress.ip_address(listener.getsockname()[0].split("%")[0]).is_loopback,
    )
    feed = Feed(url, releases_url, mlflow_url)
    app = make_app(Console(feed, access, Notes(url), data_docs))
    if metrics_port:
        serve_metrics(new_registry(url), metrics_port, metrics_host)
    # Without uvicorn's own proxy headers: who the peer is decides whether its header is believed.
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            proxy_headers=False,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn ends, then raises the signal again: that is no failure
    log.info("the console is at http://%s:%s (store: %s, releases: %s)", host, port, url, releases_url)
    server.run(sockets=[listener])
    log.info("ended")


command.add_command(user.group, "user")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise OperatorError(f"--trusted-proxy {text} is no network such as 10.0.0.5/32") from None
