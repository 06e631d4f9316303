"""`jetloop release export`: a signed copy for robots that no network reaches, on a stick or any folder.

The copy holds all metadata that leads to the channels' present releases, and the files of these alone; every byte is
checked against its signature on the way. It is as good as the repository itself, for as long as its timestamp lasts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.errors import OperatorError

if TYPE_CHECKING:
    from pipelines.release.repository import Repository
    from serving.contracts.releases import Channel


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/release",
    show_default=True,
    help="Release folder.",
)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to copy into.")
@click.option("--channel", "names", multiple=True, help="Only what this ring runs; once or more.  [default: all]")
@click.option("--target", "targets", multiple=True, help="Only engines for this; once or more.  [default: all]")
def export(folder: Path, to: Path, names: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Copies what the rings run, signed as it is, into a folder such as a USB stick.

    Reads FOLDER/metadata and FOLDER/targets, needs no key. On the robot, `jetloop-robot import` takes it. Robots refuse
    the copy once its timestamp has expired, about a day after the service signed it: what is printed last says when.

    Example: jetloop release export --folder /srv/jetloop --to /media/stick/jetloop --channel champion
    """
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

    repository = Repository.open(folder, Keys({}))
    try:
        count, size = copy(repository, to, names, targets)
    except OSError as problem:
        raise OperatorError(f"{to} cannot be written ({problem}): free space or choose another --to") from None
    role, end = min(repository.expires().items(), key=lambda item: item[1])
    click.echo(f"{to}: {count} files, {size / 1e6:.1f} MB; robots take it until {end:%Y-%m-%d %H:%M} UTC ({role})")


def copy(
    repository: "Repository", to: Path, channels: Iterable[str] = (), targets: Iterable[str] = ()
) -> tuple[int, int]:
    """Copies the present releases of some channels.

    Args:
        channels: names; empty: all.
        targets: kinds of engine; empty: all.

    Returns:
        How many files of releases were copied, and their bytes.

    Raises:
        OperatorError: nothing was released on a channel, or a file is missing or altered.
        OSError: the folder does not take it; timestamp.json comes last, so no part of it passes for a copy.
    """
    from pipelines.release import durable
    from serving.contracts.releases import channel_path

    known = {channel.channel: channel for channel in repository.channels()}
    missing = sorted(set(channels) - set(known))
    if missing or not known:
        raise OperatorError(f"nothing was released on {', '.join(missing) or 'any channel'}: set its alias in MLflow")
    chosen = [known[name] for name in channels] or list(known.values())
    paths = {channel_path(channel.channel) for channel in chosen}
    paths |= {path for channel in chosen for path in _release_files(repository, channel, set(targets))}
    state = repository.state
    size = 0
    for path, name in state.files(sorted(paths)).items():
        content = repository.read(path)
        size += len(content)
        durable.write(to / "targets" / name, content)
    for name in [*state.roots(), "root.json", *state.parts(), "timestamp.json"]:
        durable.write(to / "metadata" / name, (repository.folder / "metadata" / name).read_bytes())
    return len(paths), size


def _release_files(repository: "Repository", channel: "Channel", targets: set[str]) -> list[str]:
    """Every file of the releases that a channel names; in a rollout these are two."""
    named = [channel.passports]
    if channel.rollout and channel.rollout.previous:
        named.append(channel.rollout.previous.passports)
    folders = [
        path.rpartition("/")[0] for one in named for target, path in one.items() if not targets or target in targets
    ]
    if not folders:
        raise OperatorError(f"{channel.channel}: there is no engine for {', '.join(sorted(targets)) or 'any target'}")
    return [path for path in repository.state.files() if path.rpartition("/")[0] in folders]
