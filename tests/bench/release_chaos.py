"""`python -m tests.bench.release_chaos`: random damage to the repository, and kill -9 of who publishes and pulls.

Corruptions: one file of a good repository is harmed at random, and a robot pulls over HTTP or from a folder: a new one,
or one that ran the release before. Nothing but the whole, right release may be activated; once the file is restored the
robot must come to run it. Disk syncs are left out here, for no power fails.

The kills are in release_kills.py.
"""

import contextlib
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipelines.release import repository_state
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.command_line import run
from serving.config import RepositorySettings
from serving.contracts.releases import channel_path
from serving.errors import JetloopError, OperatorError
from serving.files import write_atomic
from serving.slots import Candidate, Slots
from serving.updater import Updater
from tests.bench.release_kills import kills, quiet_server
from tests.conftest import ROOT
from tests.test_link_parts import TARGET, channel_of, files_of, is_whole

_NEEDED_SHARE = 0.8  # of the harm is done to files that the robot needs, the rest to any file


def _bit(content: bytes, dice: random.Random, _: bytes) -> bytes:
    changed = bytearray(content)
    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(content: bytes, dice: random.Random, _: bytes) -> bytes:
    return content[: dice.randrange(len(content))]


def _swap(_: bytes, __: random.Random, other: bytes) -> bytes:
    return other


def _zero(content: bytes, dice: random.Random, _: bytes) -> bytes:
    start = dice.randrange(len(content))
    count = dice.randint(1, len(content) - start)
    return content[:start] + bytes(count) + content[start + count :]


def _append(content: bytes, dice: random.Random, _: bytes) -> bytes:
    return content + dice.randbytes(dice.randint(1, 1000))


HARMS: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    "bit": _bit,
    "cut": _cut,
    "swap": _swap,
    "zero": _zero,
    "append": _append,
}


class Robot:
    """One robot's updater with a disk of its own."""

    def __init__(self, folder: Path, url: str, root: Path) -> None:
        self.slots = Slots(folder)
        self.slots.current()
        self.activated: list[Candidate] = []
        self.wrong = 0
        settings = RepositorySettings(url=url, root=str(root), timeout_s=5)
        self._updater = Updater(settings, TARGET, "champion", self.slots, self._activate, lambda *_: None, robot="r1")

    def _activate(self, candidate: Candidate) -> None:
        self.activated.append(candidate)
        self.wrong += not (is_whole(candidate) and candidate.channel == channel_of(2, 2))

    def look(self) -> None:
        with contextlib.suppress(JetloopError):
            self._updater.check()

    def runs(self) -> str:
        current = self.slots.current()
        return current.passport.lineage.model_version if current else "nothing"


def corruptions(folder: Path, count: int, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Harms one file, lets a robot pull, restores the file, lets it pull again; so many times.

    Returns:
        How often a wrong or harmed release was accepted (must be 0), a robot did not recover (must be 0), the harm was
        refused, and it touched nothing that this robot needs.
    """
    dice = random.Random(seed)
    good, root = _good_repository(folder)
    files = {path: path.read_bytes() for path in sorted(good.rglob("*")) if path.is_file()}
    needed = _needed(good)
    server = quiet_server(good)
    result: Counter[str] = Counter({"accepted_but_wrong": 0, "not_recovered": 0, "refused": 0, "harmless": 0})
    kinds: dict[str, Counter[str]] = {kind: Counter() for kind in HARMS}
    try:
        for number in range(count):
            kind = dice.choice(list(HARMS))
            path = dice.choice(needed if dice.random() < _NEEDED_SHARE else list(files))
            other = dice.choice([one for one in files if files[one] != files[path]])
            harmed = HARMS[kind](files[path], dice, files[other])
            path.write_bytes(harmed)
            place = folder / "robot"
            shutil.rmtree(place, ignore_errors=True)
            if number % 2:
                shutil.copytree(folder / "ran-one", place, symlinks=True)
            robot = Robot(place, server.url if number % 4 < 2 else good.as_uri(), root)
            robot.look()
            outcome = "accepted_but_wrong" if robot.wrong else "harmless" if robot.activated else "refused"
            path.write_bytes(files[path])
            robot.look()
            result["not_recovered"] += robot.runs() != "2"
            result[outcome] += 1
            kinds[kind][outcome] += 1
            tick()
    finally:
        server.close()
    return {"corruptions": count, **result, "by_kind": {kind: dict(found) for kind, found in kinds.items()}}


def _needed(good: Path) -> list[Path]:
    """What a robot fetches to come to the newest release."""
    state = repository_state.load(good)
    paths = [*files_of(2), channel_path("champion")]
    targets = [good / "targets" / name for name in state.files(paths).values()]
    return [*targets, *(good / "metadata" / name for name in [*state.parts(), "timestamp.json"])]


def _good_repository(folder: Path) -> tuple[Path, Path]:
    """A repository with two releases, the robot that runs the first (in `ran-one`), and the root that robots trust."""
    good, root = folder / "good", folder / "root.json"
    repository = Repository.create(good, Keys.generate())
    shutil.copy(good / "metadata/1.root.json", root)
    repository.publish(files_of(1), [channel_of(1, 1)])
    first = Robot(folder / "ran-one", good.as_uri(), root)
    first.look()
    if first.runs() != "1":
        raise OperatorError("the robot did not take the first release: nothing to measure")
    repository.publish(files_of(2), [channel_of(2, 2)])
    return good, root


@contextlib.contextmanager
def _without_syncs() -> Iterator[None]:
    real = os.fsync
    os.fsync = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = real


@click.command()
@click.option("--corruptions", "harms", type=click.IntRange(min=0), default=2000, show_default=True)
@click.option("--kills", "deaths", type=click.IntRange(min=0), default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(harms: int, deaths: int, seed: int) -> None:
    """Harms and kills, counts, prints a table, writes build/bench/release_chaos.json; exit code 1 if a count is bad."""
    import logging

    logging.disable(logging.CRITICAL)  # every refusal is a line
    measured: dict[str, Any] = {"seed": seed}
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jetloop-chaos-") as name, Progress(transient=True) as progress:
        task = progress.add_task("corruptions", total=harms)
        (Path(name) / "harm").mkdir()
        with _without_syncs():
            measured["corruptions"] = corruptions(Path(name) / "harm", harms, seed, lambda: progress.advance(task))
        task = progress.add_task("kills", total=deaths)
        measured["kills"] = kills(Path(name) / "kill", deaths, seed, lambda: progress.advance(task))
    measured["seconds"] = round(time.monotonic() - started_s, 1)
    table = Table("what", "count")
    for part in ("corruptions", "kills"):
        for what, value in measured[part].items():
            if not isinstance(value, dict):
                table.add_row(what.replace("_", " "), str(value))
    Console().print(table)
    path = ROOT / "build/bench/release_chaos.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(measured, indent=1).encode())
    if bad(measured["corruptions"]) or bad(measured["kills"]):
        raise OperatorError(f"a count that must be 0 is not: {path}")


def bad(measured: dict[str, Any]) -> dict[str, int]:
    """The counts that must be 0 and are not."""
    must_be_0 = (
        *("accepted_but_wrong", "not_recovered", "broken_repository", "broken_robot", "published_twice"),
        *("installed_twice", "installed_broken", "left_behind"),
    )
    return {name: measured[name] for name in must_be_0 if measured.get(name)}


if __name__ == "__main__":
    run(main)
