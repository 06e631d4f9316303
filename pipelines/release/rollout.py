"""The rules of a rollout: how a new release begins, and what is the next step of one. Pure: no clock, disk or network.

    begin     a new release of a channel: to all robots at once, or to the first share of them
    advance   after `step_min_s` and with healthy reports the next share; unhealthy ones pause or withdraw it
    ordered   what a person asked for: pause, resume, withdraw, promote

The state is the signed channel file itself: its rollout's share, whether it is paused, and when it was issued. Whoever
is killed between two steps goes on from there.
"""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pipelines.params import RolloutParams
from pipelines.release.rollout_health import Outcome, Verdict
from serving.contracts.releases import Channel, ReleaseRef, Rollout
from serving.errors import RejectedError

_MAX_WITHDRAWN = 500


class Move(NamedTuple):
    """A change of a channel, to be signed and published.

    Attributes:
        channel: with a higher sequence.
        status: rolling, all, paused, withdrawn.
        reason: one line for people.
    """

    channel: Channel
    status: str
    reason: str


def begin(channel: Channel, before: Channel | None, steps: Sequence[float], at_once: str) -> Move:
    """How a release begins on a channel.

    Args:
        channel: what the alias asks for, without a rollout.
        before: what the ring ran until now; None at its first release.
        steps: of the block `rollout`.
        at_once: why it goes to all robots at once; empty: in steps.
    """
    withdrawn = before.withdrawn if before else []
    if before is not None and before.release_id == channel.release_id:  # built for more targets: how far it came stays
        schema = 2 if withdrawn or before.rollout else 1
        same = msgspec.structs.replace(channel, schema=schema, rollout=before.rollout, withdrawn=withdrawn)
        return Move(same, "all" if is_whole(before) else "rolling", "the same release, published anew")
    previous = trusted(before) if before else None
    if previous is None or previous.release_id == channel.release_id:
        reason = "there is nothing to compare it with" if previous is None else "it is what the robots ran before"
        schema = 2 if withdrawn else 1
        return Move(msgspec.structs.replace(channel, schema=schema, withdrawn=withdrawn), "all", reason)
    share = 1.0 if at_once else steps[0]
    rollout = Rollout(share=share, previous=previous)
    new = msgspec.structs.replace(channel, schema=2, rollout=rollout, withdrawn=withdrawn)
    return Move(new, "rolling" if share < 1 else "all", at_once or f"the first step: {share:.0%} of the robots")


def trusted(channel: Channel) -> ReleaseRef | None:
    """The release of a channel that is known to be good: the newest one that came to all robots.

    None where there is none, or it was withdrawn.
    """
    rollout = channel.rollout
    own = ReleaseRef(release_id=channel.release_id, model_version=channel.model_version, passports=channel.passports)
    whole = is_whole(channel) and not (rollout and rollout.paused)
    for ref in (own if whole else None, rollout.previous if rollout else None):
        if ref is not None and ref.release_id not in channel.withdrawn:
            return ref
    return None


def is_watched(channel: Channel) -> bool:
    """Whether the reports decide how this channel goes on: it is not paused, nor withdrawn."""
    paused = channel.rollout is not None and channel.rollout.paused
    return not paused and channel.release_id not in channel.withdrawn


def is_whole(channel: Channel) -> bool:
    """Whether it is for all robots of the ring."""
    return channel.rollout is None or channel.rollout.share >= 1


def age_s(channel: Channel, now: datetime.datetime) -> float:
    """How long ago this step began."""
    return (now - datetime.datetime.fromisoformat(channel.issued_at)).total_seconds()


def advance(channel: Channel, verdict: Verdict, age: float, params: RolloutParams, issued_at: str) -> Move | None:
    """The next step of a watched channel; None while it stays as it is, or has no rollout.

    Args:
        verdict: on the reports since the step began.
        age: of this step in seconds.
        issued_at: of the new channel file.
    """
    rollout = channel.rollout
    if rollout is None:
        return None
    if verdict.outcome is Outcome.UNHEALTHY:
        if verdict.withdraw and rollout.previous is not None:
            return withdraw(channel, channel.release_id, issued_at, verdict.text)
        return pause(channel, issued_at, verdict.text)
    if verdict.outcome is Outcome.NOT_ENOUGH or age < params.step_min_s or rollout.share >= 1:
        return None
    share = next((step for step in params.steps if step > rollout.share), 1.0)
    return _with(channel, issued_at, f"{share:.0%} of the robots: {verdict.text}", share=share)


# What people ask for


def pause(channel: Channel, issued_at: str, reason: str) -> Move:
    """No further robot takes the release; those that run it keep it.

    Raises:
        RejectedError: there is no rollout to pause.
    """
    rollout = _rollout(channel, "pause")
    if rollout.paused:
        raise RejectedError(f"the rollout of {channel.release_id} is paused already")
    return _with(channel, issued_at, reason, paused=True)


def resume(channel: Channel, issued_at: str, reason: str) -> Move:
    """The rollout goes on from its share; the reports count from now.

    Raises:
        RejectedError: it is not paused, or withdrawn.
    """
    rollout = _rollout(channel, "resume")
    if not rollout.paused:
        raise RejectedError(f"the rollout of {channel.release_id} is not paused")
    return _with(channel, issued_at, reason, paused=False)


def promote(channel: Channel, issued_at: str, reason: str) -> Move:
    """To all robots now.

    Raises:
        RejectedError: all take it already, or it is withdrawn.
    """
    rollout = _rollout(channel, "promote")
    if rollout.share >= 1 and not rollout.paused:
        raise RejectedError(f"{channel.release_id} is for all robots already")
    return _with(channel, issued_at, reason, share=1.0, paused=False)


def withdraw(channel: Channel, release_id: str, issued_at: str, reason: str) -> Move:
    """No robot runs this release again; those that do go to the one before, or stand still where there is none.

    Raises:
        RejectedError: it is withdrawn already.
    """
    if release_id in channel.withdrawn:
        raise RejectedError(f"{release_id} is withdrawn already")
    withdrawn = [*channel.withdrawn, release_id][-_MAX_WITHDRAWN:]
    new = msgspec.structs.replace(
        channel, schema=2, sequence=channel.sequence + 1, issued_at=issued_at, withdrawn=withdrawn
    )
    return Move(new, "withdrawn", reason)


def _rollout(channel: Channel, wanted: str) -> Rollout:
    if channel.release_id in channel.withdrawn:
        raise RejectedError(
            f"{channel.release_id} is withdrawn, there is nothing to {wanted}: set the alias on another version"
        )
    if channel.rollout is None:
        raise RejectedError(f"{channel.release_id} is for all robots, and there is none before it: nothing to {wanted}")
    return channel.rollout


def _with(
    channel: Channel, issued_at: str, reason: str, share: float | None = None, paused: bool | None = None
) -> Move:
    rollout = channel.rollout
    assert rollout is not None
    changed = msgspec.structs.replace(
        rollout,
        share=rollout.share if share is None else share,
        paused=rollout.paused if paused is None else paused,
    )
    new = msgspec.structs.replace(channel, sequence=channel.sequence + 1, issued_at=issued_at, rollout=changed)
    status = "paused" if changed.paused else "all" if changed.share >= 1 else "rolling"
    return Move(new, status, reason)
