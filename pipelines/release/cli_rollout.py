"""`jetloop release pause | resume | promote | withdraw`: a person's word on a rollout; and what `status` says of one.

A command leaves an order in FOLDER/rollout.db, which the service takes at its next look; nothing is signed here.
"""

import getpass
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.contracts.releases import Channel
from serving.errors import OperatorError, RejectedError

if TYPE_CHECKING:
    from pipelines.release.repository import Repository
    from pipelines.release.rollout_table import Order, RolloutTable

_POLL_S = 0.1

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/release",
    show_default=True,
    help="Release folder: keys, repository, history.",
)
_channel = click.option("--channel", default="champion", show_default=True, help="Whose rollout.")
_wait = click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="How long to wait for the service to do it.",
)


@click.command()
@_folder
@_channel
@_wait
def pause(folder: Path, channel: str, wait_s: float) -> None:
    """Stops a rollout where it is: robots that run the release keep it, no other takes it.

    Example: jetloop release pause --folder /srv/jetloop
    """
    _order(folder, channel, "pause", wait_s)


@click.command()
@_folder
@_channel
@_wait
def resume(folder: Path, channel: str, wait_s: float) -> None:
    """Lets a paused rollout go on from its share; what the robots report counts from now.

    Example: jetloop release resume --folder /srv/jetloop
    """
    _order(folder, channel, "resume", wait_s)


@click.command()
@_folder
@_channel
@_wait
def promote(folder: Path, channel: str, wait_s: float) -> None:
    """Gives the release of a rollout to all robots now, whatever their reports say.

    Example: jetloop release promote --folder /srv/jetloop
    """
    _order(folder, channel, "promote", wait_s)


@click.command()
@click.argument("release")
@_folder
@_wait
@click.option("--yes", is_flag=True, help="Do not ask.")
def withdraw(release: str, folder: Path, wait_s: float, yes: bool) -> None:
    """Takes RELEASE (its id, or its version in MLflow) from all robots, for good.

    Robots that run it stand still, then go to the release before it; where there is none they stay where they are and
    say so. Robots that are offline never install it again. It cannot be undone: train another network instead.

    Example: jetloop release withdraw 7 --folder /srv/jetloop
    """
    table, repository = _open(folder)
    release_id = _release(repository, release)
    channels = [one for one in repository.channels() if release_id not in one.withdrawn]
    if not channels:
        raise RejectedError(f"{release_id} is withdrawn already, on all channels")
    for channel in channels:
        click.echo(f"{channel.channel}: {_after_withdrawal(channel, release_id)}")
    if not yes:
        click.confirm(f"Withdraw {release_id} for good?", abort=True)
    orders = [table.ask(one.channel, "withdraw", release_id, _who()) for one in channels]
    _wait_for(folder, table, orders, wait_s)


def status_lines(folder: Path, repository: "Repository") -> list[str]:
    """What `jetloop release status` says of rollouts: one line a channel that has one, orders that wait, last reports.

    Raises:
        OperatorError: the table or the repository cannot be read.
    """
    table = _table(folder)
    lines = []
    for channel in repository.channels():
        lines.append(f"{channel.channel:<10} {_state(channel)}")
        if not table.path.exists():
            continue
        step = next(iter(table.steps(channel.channel, 1)), None)
        look = table.look(channel.channel)
        if step is not None:
            lines.append(f"{'':<10} {step.at[:19]}Z {step.release_id} {step.status}: {step.reason}")
        if look is not None and look.release_id == channel.release_id:
            lines.append(f"{'':<10} {look.at[:19]}Z reports {look.outcome}: {look.text}")
        lines += [f"{'':<10} asked for, not done yet: {order.kind}" for order in table.orders(channel.channel)]
    return lines


def _order(folder: Path, name: str, kind: str, wait_s: float) -> None:
    table, repository = _open(folder)
    channel = repository.channel(name)
    if channel is None:
        raise RejectedError(f"nothing was released on channel {name} yet")
    from pipelines.release.rollout_service import obey
    from pipelines.release.rollout_table import Order, now

    wanted = Order(0, now(), name, kind, channel.release_id, _who())
    move = obey(wanted, channel, now())  # as the service will: what cannot be done is said at once
    click.echo(f"{name}: {_state(channel)}")
    click.echo(f"{'':<{len(name)}}  becomes: {_state(move.channel)}")
    _wait_for(folder, table, [table.ask(name, kind, channel.release_id, _who())], wait_s)


def _wait_for(folder: Path, table: "RolloutTable", orders: "list[Order]", wait_s: float) -> None:
    """Tells what became of the orders, or that they wait."""
    if not _is_served(folder):
        click.echo(f"ordered; no service runs on {folder}: it does so when `jetloop release serve` starts")
        return
    deadline = time.monotonic() + wait_s
    for order in orders:
        while not (answer := table.answered(order)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if answer.startswith("refused"):
            raise RejectedError(f"{order.channel}: {answer}")
        click.echo(f"{order.channel}: {answer or 'ordered; the service has not done it yet, `release status` tells'}")


def _state(channel: Channel) -> str:
    """What the robots of a ring run, in words."""
    rollout = channel.rollout
    before = rollout.previous if rollout else None
    usable = before is not None and before.release_id not in channel.withdrawn
    others = before.release_id if before and usable else "what they have"
    if channel.release_id in channel.withdrawn:
        return (
            f"{channel.release_id} is withdrawn; all run {others}"
            if usable
            else (f"{channel.release_id} is withdrawn, and there is none before it: robots stand still")
        )
    if rollout is None or (rollout.share >= 1 and not rollout.paused):
        return f"{channel.release_id} for all robots"
    if rollout.paused:
        return f"{channel.release_id} paused at {rollout.share:.0%}: who runs it keeps it, the others run {others}"
    return f"{channel.release_id} for {rollout.share:.0%} of the robots, the others run {others}"


def _after_withdrawal(channel: Channel, release_id: str) -> str:
    import msgspec

    after = _state(msgspec.structs.replace(channel, withdrawn=[*channel.withdrawn, release_id]))
    if release_id == channel.release_id:
        return after
    return f"{after}; a robot that still runs {release_id} leaves it"


def _release(repository: "Repository", wanted: str) -> str:
    """The id of a published release, by its id or its version in MLflow.

    Raises:
        RejectedError: there is no such release, or its id is needed.
    """
    paths = repository.state.releases.signed.targets
    ids = {path.split("/")[1] for path in paths if path.startswith("releases/")}
    if wanted in ids:
        return wanted
    found = sorted(one for one in ids if f"-v{wanted}-" in one)
    if len(found) != 1:
        many = f"version {wanted} has the releases {', '.join(found)}: name one" if found else ""
        raise RejectedError(many or f"no release `{wanted}` was published; `jetloop release status` lists them")
    return found[0]


def _open(folder: Path) -> "tuple[RolloutTable, Repository]":
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

    return _table(folder), Repository.open(folder, Keys({}))


def _table(folder: Path) -> "RolloutTable":
    from pipelines.release.rollout_table import RolloutTable

    return RolloutTable(folder)


def _is_served(folder: Path) -> bool:
    """Whether the process that last took the folder's lock is alive."""
    try:
        os.kill(int((folder / "lock").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as problem:
        raise OperatorError(f"this user has no name ({problem}): set USER to yours") from None
