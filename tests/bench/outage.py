"""`python -m tests.bench.outage`: an outage of the broker, and what the drain after it costs the robot's decisions.

The real daemon with the simulator's body drives at 30 frames a second and talks over TLS to a Mosquitto as
`jetloop broker config` makes it. The broker is stopped, events pile up in the outbox, the broker comes back. A
subscriber in a process of its own counts what arrives. Decisions are read from the daemon's own flight recorder.
Broker and subscriber, which would be on other machines, run at a lower priority than the robot.
"""

import csv
import json
import os
import shutil
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from rich.progress import Progress

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.command_line import run
from serving.config import (
    ControlSettings,
    HardwareSettings,
    OutboxSettings,
    RepositorySettings,
    RobotConfig,
    RobotSettings,
)
from serving.contracts.events import Event
from serving.daemon import Daemon
from serving.errors import OperatorError
from serving.files import write_atomic
from serving.slots import Slots
from tests.conftest import ROOT, end, free_port, start
from tests.test_link_parts import SecureBroker
from tests.test_robot_parts import channel_of, make_candidate

_FPS = 30.0
_WARM_UP_S = 3.0
_NICE = 10
_AHEAD = 2000  # events in memory at most, while they pile up


def measure(
    folder: Path, events: int, before_s: float, rate: float, progress: Callable[[str, float], None]
) -> dict[str, Any]:
    """Runs the outage once.

    Args:
        folder: for everything that is written.
        events: that pile up while the broker is away.
        before_s: how long decisions are measured before the outage.
        rate: events a second that the robot may send.
        progress: told what is being done, and how much of it, 0..1.

    Raises:
        OperatorError: it did not come to its end in time.
    """
    broker = SecureBroker(folder)
    os.setpriority(os.PRIO_PROCESS, broker.process.pid, _NICE)
    tally = start([sys.executable, "-c", f"from tests.bench.outage import *; tally({str(folder)!r}, {broker.port})"],
                  folder / "tally.log", cwd=ROOT)  # fmt: skip
    try:
        _wait(lambda: _counted(folder), 30, "the subscriber")
        with Daemon(_config(folder, broker, rate)) as daemon:
            daemon.start()
            _wait(lambda: daemon.control.status().mode == "driving", 60, "the robot driving")
            time.sleep(_WARM_UP_S)
            before = _window(before_s, lambda share: progress("driving, broker up", share))
            broker.close()
            _pile_up(daemon, events, lambda share: progress("broker down, events pile up", share))
            waiting = daemon.outbox.depth()
            broker.begin()
            os.setpriority(os.PRIO_PROCESS, broker.process.pid, _NICE)
            begun_s = time.time()
            _drain(daemon, folder, waiting, rate, lambda share: progress("broker back, draining", share))
            during = (begun_s, time.time())
        expected = daemon.outbox.next_sequence - 1
        _wait(lambda: _counted(folder).get("distinct", 0) >= expected, 60, "the last events")
    finally:
        end(tally)
        broker.close()
    return _result(folder, events, expected, rate, before, during)


def tally(folder: str, port: int) -> None:
    """The independent count, in its own process: writes tally.json twice a second, until it is ended."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.nice(_NICE)
    place = Path(folder)
    seen: set[int] = set()
    counts = {"distinct": 0, "duplicates": 0, "out_of_order": 0, "highest": 0}

    def heard(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        sequence = msgspec.json.decode(message.payload, type=Event).sequence
        if sequence in seen:
            counts["duplicates"] += 1
            return
        seen.add(sequence)
        counts["distinct"] += 1
        counts["out_of_order"] += sequence < counts["highest"]
        counts["highest"] = max(sequence, counts["highest"])

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="tally", clean_session=False)
    client.tls_set_context(_context(place))
    client.reconnect_delay_set(1, 1)
    subscribed = threading.Event()
    topics = [("jetloop/v1/lab/r1/event/+", 1), ("jetloop/v1/lab/r1/metrics", 1)]
    client.on_connect = lambda *_: client.subscribe(topics)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = heard
    client.connect("127.0.0.1", port)
    client.loop_start()
    subscribed.wait()
    while True:
        write_atomic(place / "tally.json", json.dumps(counts).encode())
        time.sleep(0.5)


def _context(folder: Path) -> ssl.SSLContext:
    own = folder / "certs" / "services" / "collector"
    context = ssl.create_default_context(cafile=str(folder / "certs" / "ca.pem"))
    context.load_cert_chain(own / "certificate.pem", own / "key.pem")
    return context


def _config(folder: Path, broker: SecureBroker, rate: float) -> RobotConfig:
    """A robot with a release in its slot."""
    state = folder / "state"
    made = make_candidate(folder / "release", convolutions=4)
    slots = Slots(state / "slots")
    place = slots.prepare()
    for path in made.folder.iterdir():
        shutil.copy(path, place)
    slots.commit(slots.candidate(place, channel_of(made.passport.release_id)))
    Repository.create(folder / "repository", Keys.generate())  # nobody serves it: the robot boots from its slot
    root = folder / "repository" / "metadata" / "1.root.json"
    return RobotConfig(
        robot=RobotSettings(name="r1", site="lab", state_dir=str(state)),
        hardware=HardwareSettings(kind="simulated", options={"fps": _FPS}),
        repository=RepositorySettings(url=f"http://127.0.0.1:{free_port()}", root=str(root), poll_s=3600),
        mqtt=broker.settings("lab/r1", max_events_per_s=rate, reconnect_max_s=2.0),
        control=ControlSettings(),
        outbox=OutboxSettings(max_mb=1000),
    )


def _window(length_s: float, progress: Callable[[float], None]) -> tuple[float, float]:
    begun_s = time.time()
    while time.time() < begun_s + length_s:
        time.sleep(0.5)
        progress((time.time() - begun_s) / length_s)
    return begun_s, time.time()


def _pile_up(daemon: Daemon, events: int, progress: Callable[[float], None]) -> None:
    first = daemon.outbox.next_sequence
    for number in range(events):
        daemon.reporter.emit("collision", {"number": number, "p_blocked": 0.987, "action": "left"})
        while number - (daemon.outbox.next_sequence - first) > _AHEAD:
            time.sleep(0.005)
            progress(number / events)
    _wait(lambda: daemon.outbox.depth() >= events, 60, "all events on the disk")


def _drain(daemon: Daemon, folder: Path, waiting: int, rate: float, progress: Callable[[float], None]) -> None:
    first, deadline = _counted(folder)["distinct"], time.monotonic() + 3 * waiting / rate + 60
    while (arrived := _counted(folder)["distinct"] - first) < waiting:
        if time.monotonic() > deadline:
            raise OperatorError(f"only {arrived} of {waiting} events arrived; see {folder}")
        progress(arrived / waiting)
        time.sleep(0.5)


def _counted(folder: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads((folder / "tally.json").read_bytes())
        return found
    except FileNotFoundError:
        return {}


def _wait(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise OperatorError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.05)


def _result(
    folder: Path, events: int, expected: int, rate: float, before: tuple[float, float], during: tuple[float, float]
) -> dict[str, Any]:
    calm, busy = _decisions(folder, before), _decisions(folder, during)
    counted = _counted(folder)
    return {
        "events": events,
        "sent": expected,
        "arrived": counted["distinct"],
        "duplicates": counted["duplicates"],
        "out_of_order": counted["out_of_order"],
        "drain_s": round(during[1] - during[0], 1),
        "events_per_s_allowed": rate,
        "before": calm,
        "during_drain": busy,
        "p99_ratio": round(busy["latency_p99_ms"] / calm["latency_p99_ms"], 3),
    }


def _decisions(folder: Path, window: tuple[float, float]) -> dict[str, float]:
    """What the flight recorder says of decisions within a window of Unix seconds."""
    lines = [row for name in ("decisions.1.csv", "decisions.csv") for row in _rows(folder / "state" / name)]
    inside = [row for row in lines if window[0] <= float(row["captured_unix_s"]) <= window[1]]
    latency_ms = [float(row["latency_ms"]) for row in inside]
    p50, p99 = np.percentile(latency_ms, (50, 99))
    return {
        "decisions": len(inside),
        "decisions_per_s": round(len(inside) / (window[1] - window[0]), 2),
        "latency_p50_ms": round(float(p50), 3),
        "latency_p99_ms": round(float(p99), 3),
    }


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@click.command()
@click.option("--events", default=100_000, show_default=True, type=click.IntRange(1), help="That pile up.")
@click.option("--before-s", default=60.0, show_default=True, help="How long decisions are measured before the outage.")
@click.option("--rate", default=500.0, show_default=True, help="Events a second that the robot may send (its default).")
@click.option("--max-ratio", default=1.2, show_default=True, help="Of p99 during the drain to p99 before.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/bench/outage.json"),
    show_default=True,
    help="Where the figures go.",
)
def command(events: int, before_s: float, rate: float, max_ratio: float, target: Path) -> None:
    """Stops the broker, lets events pile up, starts it again, and counts: all once, in order, decisions undisturbed.

    Needs Mosquitto; takes EVENTS / RATE seconds and a few minutes: 100,000 events about five minutes. Exit code 1 when
    an event is missing, out of order, or decisions were slowed beyond --max-ratio.

    Example: python -m tests.bench.outage --events 2000 --before-s 10
    """
    sys.setswitchinterval(0.0005)  # as `jetloop-robot run` does
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        place = Path(folder)
        result = measure(
            place, events, before_s, rate, lambda what, share: bar.update(task, description=what, completed=share)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result, indent=2))
    if result["arrived"] < result["sent"] or result["out_of_order"] or result["p99_ratio"] > max_ratio:
        raise OperatorError(f"not as it should be: {target}")
    click.echo(f"{result['arrived']} events once and in order, p99 during the drain {result['p99_ratio']} of before")


if __name__ == "__main__":
    run(command)
