"""`python -m tests.bench.release_chaos`: random damage to the signed repository, and kill -9 of who publishes and pulls.

Corruptions: one file of a good repository is harmed at random, and a robot pulls over HTTP or from a folder: a new one,
or one that ran the release before. Nothing but the whole, right release may be activated; once the file is restored the
robot must come to run it. Disk syncs are left out here, for no power fails.

Kills: a process publishes what is wanted (which changes four times a second, as an alias would) and another one pulls
all the time; one of them is killed at a random moment and started again.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipelines.release import durable, repository_state
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.command_line import run
from serving.config import RepositorySettings
from serving.contracts.releases import Channel
from serving.errors import JetloopError, OperatorError
from serving.files import write_atomic
from serving.slots import Candidate, Slots
from serving.updater import Updater
from tests.conftest import ROOT, wait_for
from tests.test_link_parts import TARGET, Server, channel_of, files_of, is_whole, passport_of

_CHANGES_PER_S = 4
_LONGEST_LIFE_S = 1.0  # of a process, from being ready to its kill


# Corruptions


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
    files = {path: path.read_bytes() for path in sorted(good.rglob("*")) if path.is_file() and "keys" not in path.parts}
    server = Server(good)
    result: Counter[str] = Counter({"accepted_but_wrong": 0, "not_recovered": 0, "refused": 0, "harmless": 0})
    kinds: dict[str, Counter[str]] = {kind: Counter() for kind in HARMS}
    try:
        for number in range(count):
            kind = dice.choice(list(HARMS))
            path, other = dice.sample(list(files), 2)
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


# Kills


def publish_forever(folder: str) -> None:
    """Publishes what is wanted until it is killed; says `ready` once it holds the repository."""
    place = Path(folder)
    with durable.locked(place / "lock"):
        repository = Repository.open(place, Keys.load(place / "keys"))
        repository.sweep()
        print("ready", flush=True)
        while True:
            version = 1 + int(time.time() * _CHANGES_PER_S) % 1_000_000
            before = repository.channel("champion")
            if before is None or before.release_id != passport_of(version).release_id:
                sequence = before.sequence + 1 if before else 1
                now = msgspec.structs.replace(channel_of(version, sequence), issued_at=str(time.time()))
                repository.publish(files_of(version), [now])
            repository.renew()
            time.sleep(0.01)


def pull_forever(folder: str, url: str, root: str, ledger: str) -> None:
    """Pulls until it is killed; notes each activation and what ran then, before it counts as done."""
    slots = Slots(Path(folder))
    slots.current()
    notes = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def activate(candidate: Candidate) -> None:
        running = slots.running
        ran = running.channel.sequence if running else 0
        os.write(notes, f"{candidate.channel.sequence} {ran} {is_whole(candidate):d}\n".encode())

    settings = RepositorySettings(url=url, root=root, timeout_s=5)
    updater = Updater(settings, TARGET, "champion", slots, activate, lambda *_: None, robot="r1")
    print("ready", flush=True)
    while True:
        with contextlib.suppress(OperatorError):  # the other process was killed in the middle; the next look is soon
            updater.check()
        time.sleep(0.005)


def kills(folder: Path, count: int, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """kill -9 of the publishing or the pulling process, in turn.

    Returns:
        Repositories and robots found broken after a kill, releases published under two sequences, releases installed
        that were installed already, and robots that did not come to the newest one: all must be 0.
    """
    dice = random.Random(seed)
    release, robot, ledger = folder / "release", folder / "robot", folder / "ledger"
    keys = Keys.generate()
    keys.save(release / "keys")
    Repository.create(release, keys)
    server = Server(release)
    root = release / "metadata/1.root.json"
    programs = {
        "publisher": f"publish_forever({str(release)!r})",
        "robot": f"pull_forever({str(robot)!r}, {server.url!r}, {str(root)!r}, {str(ledger)!r})",
    }
    found: Counter[str] = Counter({"broken_repository": 0, "broken_robot": 0})
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, call in programs.items():
            running[name] = _started(call)
        for number in range(count):
            victim = ("publisher", "robot")[number % 2]
            time.sleep(dice.uniform(0, _LONGEST_LIFE_S))
            _kill(running[victim])
            if victim == "publisher":
                found["broken_repository"] += not _opens(release)
            else:
                found["broken_robot"] += not _boots(robot, ledger)
            running[victim] = _started(programs[victim])
            tick()
        _kill(running["publisher"])
        newest = Repository.open(release, Keys({})).channel("champion")
        assert newest is not None
        reached = _reaches(robot, newest)
    finally:
        for process in running.values():
            _kill(process)
        server.close()
    activations = [tuple(map(int, line.split())) for line in ledger.read_text().splitlines()]
    return {
        "kills": count,
        **found,
        "published": newest.sequence,
        "published_twice": _published_twice(release),
        "activations": len(activations),
        "installed_twice": sum(sequence == ran for sequence, ran, _ in activations),
        "installed_broken": sum(not whole for *_, whole in activations),
        "left_behind": int(not reached),
    }


def _started(call: str) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-c", f"from tests.bench.release_chaos import *; {call}"]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise OperatorError(f"`{call}` did not start again after a kill: see what it said above")
    return process


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _opens(release: Path) -> bool:
    """Whether every signature holds, and every file of the newest list is there, whole."""
    try:
        repository = Repository.open(release, Keys({}))
        for path in repository_state.load(release).files():
            repository.read(path)
    except OperatorError:
        return False
    return True


def _boots(robot: Path, ledger: Path) -> bool:
    """Whether the robot has an intact engine to boot with, as soon as it ever had one."""
    current = Slots(robot).current()
    had_one = (robot / "current.json").exists() or ledger.exists() and ledger.read_text().count("\n") > 1
    return is_whole(current) if current else not had_one


def _reaches(robot: Path, newest: Channel) -> bool:
    def there() -> bool:
        current = Slots(robot).current()
        return current is not None and current.channel.sequence == newest.sequence

    try:
        wait_for(there, 20, "the newest release")
    except BaseException:  # pytest's Failed
        return False
    return True


def _published_twice(release: Path) -> int:
    """Releases that the channel named under more than one sequence in a row."""
    channels = [
        msgspec.json.decode(path.read_bytes(), type=Channel)
        for path in (release / "targets/channels").glob("*.champion.json")
    ]
    by_sequence = {channel.sequence: channel.release_id for channel in channels}
    order = [by_sequence[sequence] for sequence in sorted(by_sequence)]
    return sum(before == after for before, after in zip(order, order[1:], strict=False))


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
