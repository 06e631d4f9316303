"""`python -m tests.bench.telemetry_chaos`: kills and outages on the event path, and an independent tally.

Senders → Mosquitto → bridge → Kafka's protocol → collector → PostgreSQL, or Mosquitto → collector → SQLite. While
events flow, bridge, collector and broker are killed with SIGKILL at random moments, and Kafka and the database are
stopped for a while. What counts is what the senders were told by the broker: every such event must be in the store,
once.

The Kafka server of the tests loses what it confirms while it is being stopped (measured: four records a stop at 400 a
second, none when nobody writes). So the bridge is held for the moment of the stop; it meets the outage afterwards.
"""

import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from serving.command_line import run
from serving.errors import OperatorError
from telemetry.store import open_reader, open_store
from tests.bench.telemetry_rig import Mosquitto, Senders, Service, bridge, collector, wait_until, written
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import Postgres

SETTLE_S = 5.0  # as robots: what was acknowledged so shortly before a broken connection is sent again
OUTAGE_S = 4.0
HELD_S = 0.7  # for what is on the way to Kafka
PATIENCE_S = 300.0  # for the last events

Say = Callable[[str], None]


def rehearse(folder: Path, events: int, kills: int, rate: float, through_kafka: bool, say: Say) -> dict[str, Any]:
    """Sends events while things are killed; counts what arrived.

    Args:
        folder: for everything that is written.
        events: to send.
        kills: how many, and so many outages of one tenth, spread over the time that the events take.
        rate: events a second.
        through_kafka: the long way; else straight into SQLite.
        say: told what is done.
    """
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        broker = Mosquitto(folder, window=200)
        stack.callback(broker.close)
        damages, store = _way(folder, broker, through_kafka, stack)
        say("Mosquitto saves who has subscribed")
        wait_until(broker.saves(), 30, "a save of Mosquitto")
        senders = Senders(broker.port, events, rate=rate, settle_s=SETTLE_S)
        senders.begin()
        done = _damage(damages, kills, events / rate, say)
        say("waiting for the last events")
        tally = senders.tally(PATIENCE_S + events / rate)
        return {"tally": tally, **_count(store, tally), "damages": done}


def _way(
    folder: Path, broker: Mosquitto, through_kafka: bool, stack: ExitStack
) -> tuple[dict[str, Callable[[], None]], str]:
    """Starts the services; gives what can be done to them, and the store."""

    def killed(one: Service | Mosquitto) -> Callable[[], None]:
        def act() -> None:
            one.kill()
            one.begin(wait=False) if isinstance(one, Service) else one.begin()

        return act

    damages: dict[str, Callable[[], None]] = {"broker killed": killed(broker)}
    if not through_kafka:
        store = f"sqlite:///{folder / 'events.db'}"
        storing = collector(folder, store, broker=broker.port)
        stack.callback(storing.close)
        return {**damages, "collector killed": killed(storing)}, store
    postgres = Postgres("fsync=on")
    stack.callback(postgres.close)
    store = postgres.database()
    open_store(store).close()
    kafka = KafkaServer(folder / "kafka")
    stack.callback(kafka.close)
    kafka.begin()
    passing = bridge(folder, broker.port, kafka)
    stack.callback(passing.close)
    storing = collector(folder, store, kafka=kafka)
    stack.callback(storing.close)

    def kafka_down() -> None:
        passing.process.send_signal(signal.SIGSTOP)
        time.sleep(HELD_S)
        kafka.close()
        passing.process.send_signal(signal.SIGCONT)
        time.sleep(OUTAGE_S)
        kafka.begin()

    def database_down() -> None:
        postgres.stop(signal.SIGINT)
        time.sleep(OUTAGE_S)
        postgres.start()

    outages = {"kafka down": kafka_down, "database down": database_down}
    return {**damages, "bridge killed": killed(passing), "collector killed": killed(storing), **outages}, store


def _damage(damages: dict[str, Callable[[], None]], kills: int, length_s: float, say: Say) -> dict[str, int]:
    """Does random damage at random moments while the events flow."""
    done = dict.fromkeys(damages, 0)
    names = [name for name in damages if name.endswith("killed")]
    outages = [name for name in damages if not name.endswith("killed")]
    plan = [random.choice(names) for _ in range(kills)] + outages * max(1, kills // 20)
    random.shuffle(plan)
    begun = time.monotonic()
    moments = sorted(random.uniform(0.05, 0.95) * length_s for _ in plan)
    for moment, name in zip(moments, plan, strict=True):
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        say(name)
        damages[name]()
        done[name] += 1
    return done


def _count(store: str, tally: int) -> dict[str, Any]:
    reader = open_reader(store)
    try:
        wait_until(lambda: reader.count() >= tally, PATIENCE_S, f"{tally} events in the store")
    except OperatorError as problem:
        late = str(problem)
    else:
        late = ""
    time.sleep(1.0)  # for what might come twice
    stored, missing = reader.count(), sum(gap.missing for gap in reader.gaps(from_first=True))
    reader.close()
    return {"stored": stored, "lost": max(missing, tally - stored), "twice": max(0, stored - tally), "late": late}


@click.command()
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(100), help="To send.")
@click.option("--kills", default=100, show_default=True, type=click.IntRange(0), help="At random moments.")
@click.option("--rate", default=400.0, show_default=True, help="Events a second.")
@click.option("--seed", default=None, type=int, help="To repeat a run.  [default: a new one]")
@click.option("--direct/--through-kafka", default=False, help="Which way into the store.  [default: through Kafka]")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/bench/telemetry_chaos.json"),
    show_default=True,
    help="Where the figures go.",
)
def command(events: int, kills: int, rate: float, seed: int | None, direct: bool, target: Path) -> None:
    """Kills what carries the events while they flow. Takes EVENTS / RATE seconds and a while.

    Exit code 1 when an event that the broker acknowledged is not in the store, or is there twice.

    Example: python -m tests.bench.telemetry_chaos --events 5000 --kills 4
    """
    seed = random.randrange(10**6) if seed is None else seed
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("starting", total=None)
        place = Path(folder) / "chaos"
        result = rehearse(place, events, kills, rate, not direct, lambda what: bar.update(task, description=what))
    click.echo(written(target, {"seed": seed, "way": "direct" if direct else "through Kafka", **result}))
    if result["lost"] or result["twice"]:
        raise OperatorError(f"lost {result['lost']}, stored twice {result['twice']} ({target})")


if __name__ == "__main__":
    run(command)
