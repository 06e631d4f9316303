"""`jetloop console`: the web page for the people who watch the fleet: robots, live events, releases.

Here is the command; feed.py asks the store and the release service, markup.py makes HTML of what they say, pages.py
puts it on pages and keeps them current.
"""

import logging
import signal

import click

from serving.command_line import log_to_stderr
from telemetry.listening import listening_socket

log = logging.getLogger("jetloop.console")


@click.command(short_help="The web page: robots, live events, releases.")
@click.option("--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store.")
@click.option(
    "--releases", "releases_url", default="http://127.0.0.1:8400", show_default=True, help="The release service."
)
@click.option("--mlflow", "mlflow_url", default="", help="Address of MLflow's page, for links to versions and runs.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
def command(url: str, releases_url: str, mlflow_url: str, host: str, port: int) -> None:
    """Serves the console and runs until it is stopped. It only reads; it asks nobody for a password.

    \b
    reads   STORE                      what the collector stored
            RELEASES/api/releases      what the release service decided

    The page needs nothing from the internet. For a network, put it behind a proxy that authenticates.

    \b
    jetloop console --store sqlite:///build/events.db --releases http://127.0.0.1:8400 --mlflow http://127.0.0.1:5000
    """
    log_to_stderr()
    listener = listening_socket(host, port)

    import uvicorn

    from telemetry.console.feed import Feed
    from telemetry.console.pages import make_app

    app = make_app(Feed(url, releases_url, mlflow_url))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn ends, then raises the signal again: that is no failure
    log.info("the console is at http://%s:%s (store: %s, releases: %s)", host, port, url, releases_url)
    server.run(sockets=[listener])
    log.info("ended")
