"""A fleet of simulated robots: many daemons' worth of telemetry and pulls out of one process, for load tests.

One asyncio loop carries robots and connections; TCP and TLS begin, and the repository is looked at, in threads. What a
robot says is in fleet_robot.py, a connection in fleet_line.py, pulls in fleet_releases.py, counting in fleet_tally.py.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from serving.config import MqttSettings, RepositorySettings
from serving.contracts.events import uuid7
from serving.contracts.releases import Wakeup
from serving.errors import OperatorError
from serving.mqtt_desk import Who
from serving.repository import Refused
from serving.rollout import choose
from simulator.fleet_faults import Faults, break_lines, lie, malform
from simulator.fleet_line import Line
from simulator.fleet_releases import Follower, Looks
from simulator.fleet_robot import FleetRobot, Rates
from simulator.fleet_tally import Tally

CONNECTS_PER_S = 500.0
_GOODBYE_S = 20.0
_CONNECTING_THREADS = 32
_TICK_S = 0.5


@dataclass(frozen=True)
class FleetSettings:
    """What the fleet is.

    Attributes:
        site, prefix: robot number 7 is `<site>/<prefix>-00007`.
        connections: MQTT clients; fewer than robots: they are shared, and there are no last wills.
        duration_s: of telling; saying goodbye comes after it.
        mqtt: of each robot, by its name.
        repository: where releases come from; None: none are pulled.
        shared_pull: one TUF client for all robots.
        sequences: the last number that each robot used before.
    """

    robots: int
    connections: int
    duration_s: float
    mqtt: Callable[[str], MqttSettings]
    site: str = "fleet"
    prefix: str = "sim"
    ring: str = "champion"
    target: str = "cpu-ort-fp32"
    rates: Rates = field(default_factory=Rates)
    repository: RepositorySettings | None = None
    shared_pull: bool = True
    pull_threads: int = 8
    faults: Faults = field(default_factory=Faults)
    sequences: Mapping[str, int] = field(default_factory=dict)
    seed: int = 1


class Fleet:
    """The robots and their connections.

    Args:
        settings: what the fleet is.
        folder: for TUF's metadata and downloads on their way.

    Raises:
        OperatorError: root.json or a certificate cannot be read.
    """

    def __init__(self, settings: FleetSettings, folder: Path) -> None:
        self.settings, self.tally = settings, Tally()
        session = f"fleet-{uuid7()[:18]}"
        names = [f"{settings.prefix}-{number:05}" for number in range(settings.robots)]
        self.robots = [
            FleetRobot(
                Who(settings.site, name, session, settings.ring),
                settings.target,
                settings.rates,
                self.tally,
                settings.sequences.get(name, 0),
                settings.repository is not None,
                hash((settings.seed, number)),
            )
            for number, name in enumerate(names)
        ]
        self._connecting = ThreadPoolExecutor(_CONNECTING_THREADS, thread_name_prefix="connect")
        self._looks = self._make_looks(folder)
        self._woken = {robot.who.robot: asyncio.Event() for robot in self.robots}
        self.lines = list(self._make_lines())

    @property
    def waiting(self) -> int:
        """Messages that the broker does not have yet."""
        return sum(robot.unacknowledged for robot in self.robots)

    async def run(self, on_tick: Callable[[float], None], ended: asyncio.Event) -> None:
        """Tells for `duration_s`, or until `ended` is set; then waits for the broker to have it all, and says goodbye.

        Args:
            on_tick: called twice a second with the seconds since the start.
        """
        lot = random.Random(self.settings.seed)
        over_s = len(self.lines) / CONNECTS_PER_S
        lines = [asyncio.create_task(_later(lot.uniform(0, over_s), line.run)) for line in self.lines]
        lives = [asyncio.create_task(work) for work in self._works(lot)]
        try:
            await self._until_ended(lives + lines, on_tick, ended)
        finally:
            await _cancelled(lives)
            until_s = time.monotonic() + _GOODBYE_S
            await asyncio.gather(*(line.goodbye(until_s) for line in self.lines))
            await _cancelled(lines)
            if self._looks is not None:
                self._looks.close()
            self._connecting.shutdown(wait=True, cancel_futures=True)

    async def _until_ended(
        self, tasks: "list[asyncio.Task[None]]", on_tick: Callable[[float], None], ended: asyncio.Event
    ) -> None:
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) < self.settings.duration_s and not ended.is_set():
            on_tick(passed_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), min(_TICK_S, self.settings.duration_s - passed_s))
            for task in tasks:
                if task.done():
                    task.result()  # a fault of ours ends the run with its traceback

    def _works(self, lot: random.Random) -> Iterable[Coroutine[Any, Any, None]]:
        """What goes on until the fleet ends."""
        faults = self.settings.faults
        for robot in self.robots:
            yield _live(robot)
            if self._looks is not None and self.settings.repository is not None:
                yield self._follow(robot, self.settings.repository.poll_s, self._looks)
        if faults.reconnects_per_min:
            yield break_lines(self.lines, faults.reconnects_per_min, lot)
        if faults.malformed_per_min:
            yield malform(self.lines, faults.malformed_per_min, lot)
        if faults.liars:
            yield lie(self.lines, faults.liars, lot)

    def _make_lines(self) -> Iterable[Line]:
        count = min(self.settings.connections, len(self.robots))
        for number in range(count):
            robots = self.robots[number::count]
            who = robots[0].who
            shared = count < len(self.robots)
            client_id = f"jetloop-fleet-{who.site}-{number:05}" if shared else f"jetloop-{who.site}-{who.robot}"
            mqtt = self.settings.mqtt(who.robot)
            yield Line(client_id, robots, mqtt, self.tally, self._connecting, self._wake)

    # Releases.

    def _make_looks(self, folder: Path) -> Looks | None:
        settings, repository = self.settings, self.settings.repository
        if repository is None:
            return None

        def make(name: str) -> Follower:
            return Follower(repository, settings.target, settings.ring, folder / name)

        make(
            "all" if settings.shared_pull else self.robots[0].who.robot
        )  # a root.json that cannot be read ends it here
        return Looks(make, settings.shared_pull, settings.pull_threads)

    def _wake(self, line: Line, payload: bytes) -> None:
        self.tally.wakeups += 1
        with contextlib.suppress(msgspec.MsgspecError):  # it means "look", whatever it says
            self.tally.heard_of(msgspec.json.decode(payload, type=Wakeup).release_id, time.monotonic())
        for robot in line.robots:
            self._woken[robot.who.robot].set()

    async def _follow(self, robot: FleetRobot, poll_s: float, looks: Looks) -> None:
        """Looks at the start, at every wake-up and at every poll, with jitter as the robot's updater."""
        woken = self._woken[robot.who.robot]
        await asyncio.sleep(random.uniform(0, min(poll_s, len(self.robots) / CONNECTS_PER_S)))
        while True:
            woken.clear()
            self.tally.looks += 1
            try:
                await self._follow_once(robot, looks)
            except Refused as refusal:
                robot.refuse(refusal.release_id, refusal.engine_sha256, str(refusal))
            except OperatorError as problem:
                self.tally.failed_looks[str(problem)] += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), poll_s * random.uniform(0.8, 1.2))

    async def _follow_once(self, robot: FleetRobot, looks: Looks) -> None:
        """One look of one robot, and what follows from it.

        Raises:
            Refused: this robot does not run what it shall.
            OperatorError: the repository does not answer.
        """
        channel = await looks.look(robot.who.robot)
        if channel is None:
            return
        choice = choose(channel, robot.who.robot, robot.release)
        if robot.release in channel.withdrawn or (choice.release is None and not robot.release):
            robot.stand_still(choice.why)
        if choice.release is not None and choice.release.release_id != robot.release:
            self.tally.heard_of(choice.release.release_id, time.monotonic())
            robot.activate(await looks.bring(robot.who.robot, choice.release), choice.cause)


async def _live(robot: FleetRobot) -> None:
    robot.start()
    while True:
        await asyncio.sleep(robot.step())


async def _later(pause_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.sleep(pause_s)
    await work()


async def _cancelled(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
