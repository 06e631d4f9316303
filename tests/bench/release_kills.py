"""kill -9 of who publishes releases and of who pulls them, at random moments (release_chaos.py runs it).

A process publishes what is wanted (which changes four times a second, as an alias would) and another one pulls all the
time; one of them is killed and started again.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipelines.release import durable, repository_state
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.config import RepositorySettings
from serving.contracts.releases import Channel
from serving.errors import OperatorError
from serving.slots import Candidate, Slots
from serving.updater import Updater
from tests.conftest import ROOT, wait_for
from tests.test_link_parts import TARGET, Server, channel_of, files_of, is_whole, passport_of

_CHANGES_PER_S = 4
_LONGEST_LIFE_S = 1.0  # of a process, from being ready to its kill


def quiet_server(folder: Path) -> Server:
    """A web server that says nothing of robots that are killed while they ask."""
    server = Server(folder)
    server._http.handle_error = lambda *_: None  # type: ignore[method-assign]
    return server


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
    server = quiet_server(release)
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
            _wait_until_ready(running[victim])
            time.sleep(dice.uniform(0, _LONGEST_LIFE_S))
            _kill(running[victim])
            if victim == "publisher":
                found["broken_repository"] += not _opens(release)
            else:
                found["broken_robot"] += not _boots(robot, ledger)
            running[victim] = _started(programs[victim])
            tick()
        for process in running.values():
            _wait_until_ready(process)
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
    program = [sys.executable, "-c", f"from tests.bench.release_kills import *; {call}"]
    return subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)


def _wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout and process.stdout.readline() != b"ready\n":
        raise OperatorError("a process did not start again after a kill: see what it said above")


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
    had_one = (robot / "current.json").exists() or (ledger.exists() and ledger.read_text().count("\n") > 1)
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
    """Releases that a channel file named under more than one sequence."""
    sequences: dict[str, set[int]] = {}
    for path in (release / "targets/channels").glob("*.champion.json"):
        channel = msgspec.json.decode(path.read_bytes(), type=Channel)
        sequences.setdefault(channel.release_id, set()).add(channel.sequence)
    return sum(len(found) > 1 for found in sequences.values())
