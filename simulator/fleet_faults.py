"""What goes wrong in a simulated fleet when it is asked to: lost connections, malformed messages, false names."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from serving.contracts.events import MAX_PAYLOAD_BYTES, Event, event_topic, utc_now, uuid7
from simulator.fleet_line import Line
from simulator.fleet_robot import FleetRobot

LIES_PER_MIN = 60.0  # of each liar


@dataclass(frozen=True)
class Faults:
    """All of it is besides what the robots tell, and counted by itself."""

    reconnects_per_min: float = 0.0  # connections that break without a goodbye, over the fleet
    malformed_per_min: float = 0.0  # messages that are no events, over the fleet
    liars: int = 0  # robots that also speak on the topics of the next one


async def break_lines(lines: Sequence[Line], per_min: float, lot: random.Random) -> NoReturn:
    """Ends connections, one chosen by lot at a time."""
    while True:
        await asyncio.sleep(lot.expovariate(per_min / 60))
        lot.choice(lines).kick("broken on purpose")


async def malform(lines: Sequence[Line], per_min: float, lot: random.Random) -> NoReturn:
    """Sends what the collector must refuse, under the name of a robot chosen by lot."""
    while True:
        await asyncio.sleep(lot.expovariate(per_min / 60))
        line = lot.choice(lines)
        who = lot.choice(line.robots).who
        payload = lot.choice((b"not json", b"{}", b"\xff\xfe\x00", b"[" * 5000, b" " * (MAX_PAYLOAD_BYTES + 1024)))
        line.publish_stranger("(malformed)", event_topic(who.site, who.robot, "collision"), payload)


async def lie(lines: Sequence[Line], liars: int, lot: random.Random) -> NoReturn:
    """Robots that send an event of their own on the topic of the next robot: an ACL stops it, or the collector does."""
    pairs = [(line, robot) for line in lines for robot in line.robots]
    while True:
        await asyncio.sleep(lot.expovariate(liars * LIES_PER_MIN / 60))
        number = lot.randrange(min(liars, len(pairs)))
        (line, liar), (_, victim) = pairs[number], pairs[(number + 1) % len(pairs)]
        topic = event_topic(victim.who.site, victim.who.robot, "collision")
        line.publish_stranger("(lie)", topic, _event_of(liar))


def _event_of(liar: FleetRobot) -> bytes:
    who = liar.who
    event = Event(
        id=uuid7(),
        source=f"/jetloop/{who.site}/{who.robot}",
        type="collision",
        time=utc_now(),
        site=who.site,
        robot=who.robot,
        session=who.session,
        sequence=max(liar.sequence, 1),
        data={"count": 1},
    )
    return msgspec.json.encode(event)
