"""`jetloop simulate fleet`: the command. What it runs is in fleet.py."""

import asyncio
import json
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from serving.errors import OperatorError

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_SPARE_FILES = 200


@click.command(short_help="Many daemons' worth of telemetry and pulls out of one process, for load tests.")
@click.option("--robots", type=click.IntRange(1, 50_000), default=100, show_default=True, help="How many.")
@click.option("--mqtt", "broker", default="127.0.0.1:1883", show_default=True, help="The MQTT broker, HOST:PORT.")
@click.option(
    "--connections", type=click.IntRange(1), help="MQTT clients; fewer than robots share them.  [default: one a robot]"
)
@click.option("--duration", "duration_s", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds.")
@click.option("--metrics-every", type=click.FloatRange(min=0.05), default=10, show_default=True, help="Seconds.")
@click.option("--state-every", type=click.FloatRange(min=0.05), default=5, show_default=True, help="Seconds.")
@click.option(
    "--events-per-min", type=click.FloatRange(min=0), default=6, show_default=True, help="Of each robot, on average."
)
@click.option("--site", default="fleet", show_default=True, help="Site of all of them.")
@click.option("--prefix", default="sim", show_default=True, help="Robots are called PREFIX-00000 and so on.")
@click.option("--username", default="", help="For the broker.")
@click.option("--password", default="", help="For the broker.")
@click.option("--ca", type=_FILE, help="PEM of the broker's authority: speak TLS.")
@click.option(
    "--certs", type=_FOLDER, help="Folder of `jetloop broker certs`: TLS, each robot with its own certificate."
)
@click.option("--repository", "url", help="URL of a release repository to follow.  [default: nothing is pulled]")
@click.option("--root", type=_FILE, help="root.json that the robots trust; needed with --repository.")
@click.option("--ring", type=click.Choice(["champion", "canary"]), default="champion", show_default=True)
@click.option("--target", default="cpu-ort-fp32", show_default=True, help="Kind of engine that they claim to run.")
@click.option("--poll", "poll_s", type=click.FloatRange(min=0.1), default=30, show_default=True, help="Seconds.")
@click.option(
    "--pull",
    type=click.Choice(["shared", "each"]),
    default="shared",
    show_default=True,
    help="shared: one verified download for all, each robot decides. each: every robot is a TUF client and downloads.",
)
@click.option("--reconnects", type=click.FloatRange(min=0), default=0, help="Connections cut a minute, over the fleet.")
@click.option("--malformed", type=click.FloatRange(min=0), default=0, help="Messages a minute that are no events.")
@click.option("--liars", type=click.IntRange(min=0), default=0, help="Robots that also use another's topics, 60/min.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of what the robots meet.")
@click.option(
    "--numbers",
    type=_FILE,
    help="File that remembers each robot's last sequence number.  [default: build/fleet/SITE-PREFIX.json]",
)
@click.option("--json", "out", type=_FILE, help="Write the tally here too.")
def fleet(duration_s: float, numbers: Path | None, out: Path | None, site: str, prefix: str, **options: Any) -> None:
    """Speak to a broker, and to a release repository, as many robots at once.

    Every robot has an MQTT client of its own, named as the daemon's, with a last will. It tells its state (retained),
    metrics and events by the contract, at QoS 1, and sends again what was not acknowledged. It hears wake-ups, follows
    its ring of the repository as the daemon does, and tells `model.activated`. It drives nothing: what it meets is
    drawn by lot, engines are verified and thrown away, and what waits for the broker does not outlive this process.

    At the end, or after Ctrl-C, it waits up to 20 s for acknowledgements, says goodbye, and prints what was made, sent
    and acknowledged, and how long each release took from the first robot that heard of it to the last that runs it.
    Exit code 1 if the broker does not have everything.

    The next run goes on with the sequence numbers of this one, unless it was killed.

    \b
    reads   ROOT, CERTS, NUMBERS; MQTT jetloop/v1/releases/RING; the repository
    writes  MQTT jetloop/v1/SITE/PREFIX-*/state, metrics, event/*; NUMBERS

    \b
    jetloop simulate fleet --robots 1000 --duration 120
    jetloop simulate fleet --robots 200 --repository http://127.0.0.1:8400 --root build/release/root.json --pull each
    jetloop simulate fleet --robots 300 --reconnects 600 --malformed 60 --liars 3
    """
    from simulator.fleet_tally import as_text

    numbers = numbers or Path("build/fleet") / f"{site}-{prefix}.json"
    with tempfile.TemporaryDirectory(prefix="jetloop-fleet-") as folder:
        settings = _settings(duration_s, site, prefix, _read_numbers(numbers), options)
        if settings.connections < settings.robots:
            click.echo(
                f"{settings.robots} robots share {settings.connections} connections: the broker sees fewer clients "
                "than robots, and there are no last wills"
            )
        made = asyncio.run(_run(settings, Path(folder)))
    _write(numbers, {robot.who.robot: robot.sequence for robot in made.robots})
    figures = {"robots": settings.robots, "connections": settings.connections, **made.tally.figures()}
    if out is not None:
        _write(out, figures)
    for line in as_text(figures, settings.robots):
        click.echo(line)
    if made.waiting:
        raise OperatorError(
            f"the broker does not have {made.waiting} of the messages: see why connections broke, above"
        )


def _settings(duration_s: float, site: str, prefix: str, sequences: dict[str, int], options: dict[str, Any]) -> Any:
    """What the options say, checked.

    Raises:
        OperatorError: they do not go together, or a value is not allowed.
    """
    from serving.config import RepositorySettings
    from serving.contracts.names import Name
    from serving.settings import convert
    from simulator.fleet import FleetSettings
    from simulator.fleet_faults import Faults
    from simulator.fleet_robot import Rates

    robots, url, root = options["robots"], options["url"], options["root"]
    connections = min(options["connections"] or robots, robots)
    if options["certs"] and connections < robots:
        raise OperatorError("--certs gives each robot a certificate, and so a connection: leave --connections out")
    if url and not root:
        raise OperatorError("--repository needs --root: the root.json of the release service, which the robots trust")
    for name in (site, prefix):
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError as problem:
            raise OperatorError(f"--site and --prefix are names, and `{name}` is none: {problem}") from None
    _allow_files(connections + (robots if url and options["pull"] == "each" else 0))
    raw = {"url": url, "root": str(root), "poll_s": options["poll_s"]}
    return FleetSettings(
        robots=robots,
        connections=connections,
        duration_s=duration_s,
        mqtt=lambda robot: _mqtt(robot, site, options),
        site=site,
        prefix=prefix,
        ring=options["ring"],
        target=options["target"],
        rates=Rates(options["metrics_every"], options["state_every"], options["events_per_min"]),
        repository=convert(raw, RepositorySettings, "--repository") if url else None,
        shared_pull=options["pull"] == "shared",
        faults=Faults(options["reconnects"], options["malformed"], options["liars"]),
        sequences=sequences,
        seed=options["seed"],
    )


def _mqtt(robot: str, site: str, options: dict[str, Any]) -> Any:
    from serving.config import MqttSettings
    from serving.settings import convert

    host, _, port = options["broker"].removeprefix("mqtt://").rpartition(":")
    if not host or not port.isdecimal():
        raise OperatorError(f"--mqtt {options['broker']} is not HOST:PORT, such as 127.0.0.1:1883")
    raw: dict[str, Any] = {"host": host.strip("[]"), "port": int(port)}
    raw |= {"username": options["username"], "password": options["password"], "ca": str(options["ca"] or "")}
    if options["certs"]:
        own = options["certs"] / "robots" / site / robot
        raw["ca"] = str(options["ca"] or options["certs"] / "ca.pem")
        raw |= {"certificate": str(own / "certificate.pem"), "key": str(own / "key.pem")}
    return convert(raw, MqttSettings, "--mqtt")


async def _run(settings: Any, folder: Path) -> Any:
    """Runs the fleet and shows how it goes: a line that changes on a terminal, elsewhere one every 10 s."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from simulator.fleet import Fleet

    made, ended = Fleet(settings, folder), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    console = Console(stderr=True)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("connecting", total=settings.duration_s)
        told_s = 0.0

        def tick(passed_s: float) -> None:
            nonlocal told_s
            text = (
                f"{made.tally.connected}/{len(made.lines)} connected, {made.tally.acknowledged} acknowledged, "
                f"{made.waiting} wait"
            )
            progress.update(bar, completed=passed_s, description=text)
            if not console.is_terminal and passed_s - told_s >= 10:
                told_s = passed_s
                click.echo(f"{passed_s:.0f} s: {text}", err=True)

        await made.run(tick, ended)
    return made


def _allow_files(wanted: int) -> None:
    """Lets this process hold a socket for each connection.

    Raises:
        OperatorError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += _SPARE_FILES
    if soft < wanted and (hard == resource.RLIM_INFINITY or wanted <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    elif soft < wanted:
        raise OperatorError(
            f"{wanted} open files are needed, {hard} are allowed: raise `ulimit -Hn`, or fewer --robots"
        )


def _read_numbers(path: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); remove it, or give another --numbers") from None


def _write(path: Path, content: Any) -> None:
    from serving.files import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, indent=1).encode() + b"\n")
    except OSError as problem:
        raise OperatorError(f"{path} cannot be written: {problem.strerror}") from None
