"""`jetloop demo`: starts the house, turns the loop twice, shows what came of it, and ends all it started."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import click

from pipelines.demo import summary as summaries
from pipelines.demo import workspace
from pipelines.demo.loop import Loop, Round
from pipelines.demo.processes import Processes
from pipelines.demo.services import House
from pipelines.demo.terminal import Terminal
from serving.errors import OperatorError

ROBOT_SEED = 7  # of the room it drives in; the images are from other rooms
LAB = 12  # site of all rooms: one floor, one light, one kind of camera, as a lab has them


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Your images: a notebook's dataset.zip, or a folder.")
@click.option("--weights", type=click.Path(path_type=Path), help="Pretrained weights (.pth) of a known backbone.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--images", default=20, show_default=True, help="Images of each simulated session, one room each.")
@click.option("--sessions", default=16, show_default=True, help="Simulated sessions in the first round.")
@click.option("--drive-s", default=10.0, show_default=True, help="Seconds of driving in each round.")
@click.option("--epochs", type=int, help="Epochs of training [default: as in params.yaml].")
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def command(
    data: Path | None,
    weights: Path | None,
    folder: Path,
    images: int,
    sessions: int,
    drive_s: float,
    epochs: int | None,
    keep: bool,
) -> int:
    """The whole loop on this machine, two rounds, in a few minutes.

    Starts MLflow, an MQTT broker, the release service, the collector, the console and one simulated robot. Then, twice:
    images in, `dvc repro`, `champion` is set, and the robot pulls, checks and drives with the new model. Your images
    make the first round, the arena's join them in the second. A model that does not pass the gates of params.yaml is
    refused, as it would be in the lab. Writes FOLDER/summary.json; exit code 1 when a promise was broken.

    \b
    jetloop demo                                      with simulated images
    jetloop demo --data dataset.zip --weights w.pth   with yours
    """
    signal.signal(signal.SIGTERM, _as_interrupt)
    terminal = Terminal()
    for given in filter(None, (data, weights)):
        if not given.exists():
            raise OperatorError(f"{given} does not exist")
    folder = folder.absolute()
    house = House.plan(folder)
    terminal.title("a scratch workspace, and the house")
    with terminal.step("clone the checkout"):
        workspace.make(workspace.checkout(), folder / "workspace", clear=folder)
    environment = workspace.environment(house.mlflow_url)
    processes = Processes(house.logs, environment, house.workspace)
    with processes:
        batches = _prepare(house, processes, terminal, data, weights, images, sessions, epochs)
        loop = Loop(house, processes, terminal, environment)
        rounds: list[Round] = []
        for number, (title, incoming) in enumerate(batches, start=1):
            terminal.title(f"round {number}: {title}")
            rounds.append(loop.turn(number, incoming, drive_s))
        with terminal.step("the robot stops, its last events arrive"):
            sent = _stop_robot(house, processes)
        result = summaries.summarise(house, rounds, terminal.seconds, summaries.events(house, sent))
        summaries.write(folder / "summary.json", result)
        summaries.show(terminal.console, result)
        terminal.say(f"  all of it: {folder / 'summary.json'}")
        if keep:
            _stay(house, processes, terminal)
    return 0 if all(result["promises"].values()) else 1


def _prepare(
    house: House,
    processes: Processes,
    terminal: Terminal,
    data: Path | None,
    weights: Path | None,
    images: int,
    sessions: int,
    epochs: int | None,
) -> list[tuple[str, list[list[str]]]]:
    """Starts all processes, makes the images while they come up; returns the rounds: (title, files to ingest)."""
    _set_params(house, data, weights, epochs)
    jetloop_release = house.jetloop("release", "init", "--folder", str(house.releases))
    with terminal.step("keys and an empty release repository"):
        _quietly(jetloop_release, house, processes)
    house.write_robot_config(ROBOT_SEED, LAB)
    programs = house.programs()
    for program in programs:
        processes.start(program)
    with terminal.step("images" if data is None else "images, yours and the arena's"):
        batches = _batches(house, data, images, sessions)
    for program in programs:
        with terminal.step(f"{program.name} answers"):
            processes.wait_ready(program)
    processes.start(house.robot())
    with terminal.step("the robot is up, and stands still: it has no model"):
        processes.wait_ready(house.robot())
    for program in programs:
        if program.address:
            terminal.say(f"  {program.name:10} {program.address}")
    return batches


def _batches(house: House, data: Path | None, images: int, sessions: int) -> list[tuple[str, list[list[str]]]]:
    from simulator.sessions import make_session

    incoming = house.folder / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)

    def arena(first_seed: int, count: int) -> list[str]:
        paths = [incoming / f"arena-{seed}.zip" for seed in range(first_seed, first_seed + count)]
        for seed, path in enumerate(paths, start=first_seed):
            make_session(path, session_id=path.stem, source=path.stem, seed=seed, images=images, site=LAB)
        return [str(path) for path in paths]

    if data is None:
        return [("simulated images", [arena(101, sessions)]), ("more rooms", [arena(201, sessions // 2)])]
    yours = [str(data.absolute()), "--source", "yours"]
    return [("your images", [yours]), ("the arena's as well, where the robot drives", [arena(101, sessions)])]


def _set_params(house: House, data: Path | None, weights: Path | None, epochs: int | None) -> None:
    train: dict[str, object] = {}
    # One set of one room: by near-duplicate group, so that both rounds are judged on some of it.
    split: dict[str, object] = {"by": "group"} if data else {}
    if weights is not None:
        from training.model import backbone_of

        train |= {"weights": str(weights.absolute()), "backbone": backbone_of(weights)}
        train |= {"finetune": "head", "resolution": 224}
    if epochs is not None:
        train["epochs"] = epochs
    changes: dict[str, dict[str, object]] = {
        "train": train,
        "split": split,
        "export": {"int8": "no"},  # this network gains nothing by it, and trying takes time
        "simulate": {"site": LAB, "rooms": 6, "max_rooms": 24, "starts": 1},
    }
    workspace.set_params(house.workspace, changes)
    workspace.commit(house.workspace, "the demo's parameters")


def _quietly(arguments: list[str], house: House, processes: Processes) -> None:
    done = subprocess.run(
        arguments, cwd=house.workspace, env=dict(processes.environment), capture_output=True, text=True
    )
    if done.returncode:
        raise OperatorError((done.stderr.strip().splitlines() or ["no message"])[-1])


def _stop_robot(house: House, processes: Processes) -> int:
    """Ends the robot and waits until the store has all that it sent; returns the last sequence number it gave."""
    from pipelines.demo.services import ROBOT, SITE
    from serving.outbox import Outbox
    from telemetry.store import open_reader

    processes.end("robot")
    with contextlib.closing(Outbox(house.robot_state / "outbox.db", max_bytes=1 << 30)) as outbox:
        sent = outbox.next_sequence - 1
    deadline = time.monotonic() + 15
    with contextlib.closing(open_reader(house.store)) as store:
        while time.monotonic() < deadline and store.counts_by_robot().get((SITE, ROBOT), 0) < sent:
            time.sleep(0.1)
    return sent


def _stay(house: House, processes: Processes, terminal: Terminal) -> None:
    processes.start(house.robot())
    terminal.title("everything is running; Ctrl-C ends it")
    for program in house.programs():
        if program.address:
            terminal.say(f"  {program.name:10} {program.address}")
    try:
        while True:
            processes.check()
            time.sleep(1.0)
    except KeyboardInterrupt:
        terminal.say("ending all processes")


def _as_interrupt(*_: object) -> None:
    """SIGTERM ends the demo as Ctrl-C does: through every `finally`."""
    raise KeyboardInterrupt
