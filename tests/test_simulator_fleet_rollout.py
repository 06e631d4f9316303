"""A simulated robot of the fleet runs what the real one's updater runs, whatever the signed channel file says."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.config import RepositorySettings
from serving.contracts.releases import Channel, ReleaseRef, Rollout, channel_path
from serving.repository import Refused
from simulator.fleet import Fleet
from simulator.fleet_releases import Follower, Looks
from tests.conftest import free_port
from tests.test_link_parts import TARGET, Server, channel_of, files_of
from tests.test_release_rollout_robots import Robot
from tests.test_simulator_fleet import settings_of

ROBOTS = 6


class Place:
    """A signed repository behind a web server, as the Robot of test_release_rollout_robots.py expects it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository.create(folder / "repository", Keys.generate())
        self.repository.publish({**files_of(1), **files_of(2), **files_of(3)}, [])
        self.server = Server(folder / "repository")
        root = str(folder / "repository" / "metadata" / "1.root.json")
        self.settings = RepositorySettings(url=self.server.url, root=root, timeout_s=2)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.server.close()


def reference(version: int) -> ReleaseRef:
    one = channel_of(version, 1)
    return ReleaseRef(release_id=one.release_id, model_version=one.model_version, passports=one.passports)


def channel(sequence: int, version: int, rollout: Rollout | None = None, withdrawn: tuple[int, ...] = ()) -> Channel:
    gone = [reference(one).release_id for one in withdrawn]
    return msgspec.structs.replace(channel_of(version, sequence), schema=2, rollout=rollout, withdrawn=gone)


# What the service may sign one after the other, and whether a share of the robots differs from the rest afterwards.
STORY = [
    (channel(1, 1), False),
    (channel(2, 2, Rollout(share=0.3, previous=reference(1))), True),
    (channel(3, 2, Rollout(share=0.6, previous=reference(1))), True),
    (channel(4, 2, Rollout(share=1.0, previous=reference(1), paused=True)), True),
    (channel(5, 2, Rollout(share=1.0, previous=reference(1))), False),
    (channel(6, 3, Rollout(share=0.5, previous=reference(2))), True),
    (channel(7, 3, Rollout(share=0.5, previous=reference(2)), withdrawn=(3,)), False),
    (channel(8, 3, Rollout(share=0.5, previous=reference(2)), withdrawn=(3, 2)), False),  # nothing is left to run
    (channel(9, 1, withdrawn=(3, 2)), False),
]


def test_the_fleet_and_the_real_robot_agree(place: Place) -> None:
    """Share, pause, going on, withdrawal with and without a release before it: the same release on robots of a name."""
    given = settings_of(free_port(), ROBOTS, repository=place.settings)
    fleet = Fleet(given, place.folder / "unused")
    looks = Looks(lambda name: Follower(place.settings, TARGET, "champion", place.folder / "pulls" / name), False, 2)
    (place.folder / "real").mkdir()
    (place.folder / "real" / "repository").symlink_to(place.folder / "repository")
    real = [Robot(robot.who.robot, place.folder / "real", place.server) for robot in fleet.robots]

    async def all_look() -> None:
        await asyncio.gather(*(fleet._follow_once(robot, looks) for robot in fleet.robots))

    for signed, divided in STORY:
        place.repository.publish({}, [signed])
        asyncio.run(all_look())
        for one in real:
            one.look()
        runs = [robot.release for robot in fleet.robots]
        assert runs == [reference(int(one.drives)).release_id if one.drives else "" for one in real], signed.sequence
        assert (len(set(runs)) > 1) is divided, signed.sequence
        for robot, one in zip(fleet.robots, real, strict=True):
            if not one.drives:
                assert robot.state().reason == one.stood[-1]
    looks.close()


def test_a_robot_that_was_away_never_runs_what_was_withdrawn_meanwhile(place: Place) -> None:
    """It starts when the release is withdrawn already, and nothing is named before it: it stands, and says why."""
    place.repository.publish({}, [channel(1, 2, withdrawn=(2,))])
    fleet = Fleet(settings_of(free_port(), 1, repository=place.settings), place.folder / "fleet")
    looks = Looks(lambda name: Follower(place.settings, TARGET, "champion", place.folder / name), True, 1)
    place.server.asked.clear()
    for _ in range(2):
        asyncio.run(fleet._follow_once(fleet.robots[0], looks))
    looks.close()
    assert fleet.robots[0].release == ""
    assert "is withdrawn" in fleet.robots[0].state().reason
    assert not [path for path in place.server.asked if "engine" in path]


def test_another_rings_channel_is_refused(place: Place) -> None:
    """A signed file of another ring in the place of this one's; it is looked at once, and not at every poll."""
    other = msgspec.json.encode(channel_of(1, 1, "canary"))
    place.repository.publish({channel_path("champion"): other}, [])
    follower = Follower(place.settings, TARGET, "champion", place.folder / "one")
    with pytest.raises(Refused, match="about channel canary"):
        follower.look()
    place.server.asked.clear()
    assert follower.look() is None
    assert place.server.asked == ["metadata/timestamp.json"]
