"""Which release a robot of a ring runs: the new one, the one before it, or none. Pure: no network, no disk.

The service says how large a share takes the new release (contracts/releases.py, `Rollout`); each robot finds out by
itself whether it is one of them.
"""

from typing import NamedTuple, Optional

from serving.contracts.releases import Channel, ReleaseRef, rollout_place


class Choice(NamedTuple):
    """What a robot shall run.

    Attributes:
        release: None where it keeps what it has; a robot whose release was withdrawn stands still then.
        cause: one word for the event `model.activated`: `release`, `previous` (this robot's turn has not come) or
            `withdrawn`.
        why: one line for people.
    """

    release: Optional[ReleaseRef]
    cause: str
    why: str


def choose(channel: Channel, robot: str, running: str) -> Choice:
    """What this robot shall run.

    Args:
        channel: verified as TUF does.
        robot: its name.
        running: the release that it runs; empty while it has none.
    """
    new, rollout = channel.release_id, channel.rollout
    if new in channel.withdrawn:
        return _previous(channel, "withdrawn", f"{new} is withdrawn")
    if rollout is None:
        return Choice(_named(channel), "release", f"{new} is for all robots of {channel.channel}")
    place = rollout_place(robot, new)
    stands = f"this robot stands at {place:.3f}, {new} is for those below {rollout.share:g}"
    if place >= rollout.share:
        return _previous(channel, "previous", stands)
    if rollout.paused and running != new:
        return _previous(channel, "previous", f"the rollout of {new} is paused")
    return Choice(_named(channel), "release", stands)


def _named(channel: Channel) -> ReleaseRef:
    return ReleaseRef(release_id=channel.release_id, model_version=channel.model_version, passports=channel.passports)


def _previous(channel: Channel, cause: str, why: str) -> Choice:
    previous = channel.rollout.previous if channel.rollout else None
    if previous is None:
        return Choice(None, cause, f"{why}; no release before it is named")
    if previous.release_id in channel.withdrawn:
        return Choice(None, cause, f"{why}; {previous.release_id}, before it, is withdrawn too")
    return Choice(previous, cause, why)
