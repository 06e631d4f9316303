"""`jetloop-robot import`: releases from a folder, such as a USB stick, for a robot that no network reaches.

The same checks as over the network, by the same code (updater.py over the folder), in a scratch copy of what this robot
knows: signatures, expiry, versions, the channel's sequence, passport, digests. What passes is put where the daemon
looks first (repository.py); it verifies once more, loads the engine, and puts it on probation like any other. So this
works beside a running daemon, and before its next start.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, List

import click
import msgspec

from serving import files
from serving.command_line import log_to_stderr
from serving.config import RobotConfig, load
from serving.errors import OperatorError, RejectedError
from serving.repository import IMPORTED, KEPT
from serving.slots import Candidate, Slots
from serving.updater import Updater

_KNOWN = ("seen.json", "refused.json")  # what a robot remembers of channels and engines


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot.",
)
def command(folder: Path, config_path: Path) -> None:
    """Take signed releases from FOLDER, such as a USB stick that `jetloop release export` filled.

    Refuses what the network would not get past this robot either: unsigned, altered, cut, expired, older than what it
    has seen, for another kind of robot. What passes is copied to robot.state_dir; the running daemon takes it at its
    next look (repository.poll_s), else its next start does. FOLDER is only read, and may be removed afterwards.

    Example: jetloop-robot import /media/stick/jetloop --config robot.toml
    """
    log_to_stderr("WARNING")
    config = load(config_path)
    release = take(folder, config)
    click.echo(
        f"{release} is good: the robot takes it at its next look, within {config.repository.poll_s:g} s of running"
    )


def take(folder: Path, config: RobotConfig) -> str:
    """Checks what a folder holds for a robot, and hands it to the daemon.

    Returns:
        The release that this robot will run.

    Raises:
        RejectedError: it is not what this robot may run.
        OperatorError: the folder is incomplete or cannot be read, or the disk does not take it.
    """
    slots = Path(config.robot.state_dir) / "slots"
    try:
        with _scratch(slots) as scratch:
            release = _checked(folder, config, scratch)
            _hand_over(scratch / "tuf" / KEPT, slots / "tuf")
            return release
    except OSError as problem:
        raise OperatorError(f"{slots}: {problem}; check the disk and the owner of robot.state_dir") from None


def _checked(folder: Path, config: RobotConfig, scratch: Path) -> str:
    """Runs the robot's updater over the folder; nothing drives."""
    brought: List[Candidate] = []
    refusals: List[str] = []
    updater = Updater(
        msgspec.structs.replace(config.repository, url=folder.absolute().as_uri()),
        config.engine.target,
        config.robot.ring,
        Slots(scratch),
        activate=brought.append,
        refused=lambda _release, _engine, why: refusals.append(why),
        robot=config.robot.name,
    )
    updater.check()
    if refusals:
        raise RejectedError(f"{folder} is refused: {refusals[0]}")
    if not brought:
        raise RejectedError(
            f"{folder} holds nothing for this robot: no release of the channel {config.robot.ring}, or one that it "
            "refused before, or that is not yet its turn to take"
        )
    return brought[0].passport.release_id


@contextlib.contextmanager
def _scratch(slots: Path) -> Iterator[Path]:
    """A folder with a copy of what the robot has seen, so that nothing older passes; on the robot's own disk."""
    slots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=slots) as name:
        scratch = Path(name)
        if (slots / "tuf" / "metadata").is_dir():
            shutil.copytree(slots / "tuf" / "metadata", scratch / "tuf" / "metadata", symlinks=True)
        for known in _KNOWN:
            if (slots / known).is_file():
                shutil.copy(slots / known, scratch / known)
        yield scratch


def _hand_over(kept: Path, tuf: Path) -> None:
    """Puts the copy where the daemon looks, in one rename."""
    tuf.mkdir(exist_ok=True)
    owner = tuf.parent.stat()
    for path in (tuf, kept, *kept.rglob("*")):
        if path.is_dir():
            files.sync_folder(path)
        if os.geteuid() == 0:  # the daemon, which is not root, removes it when it is done
            os.chown(path, owner.st_uid, owner.st_gid)
    if (tuf / IMPORTED).exists():
        shutil.rmtree(tuf / IMPORTED)
    os.rename(kept, tuf / IMPORTED)
    files.sync_folder(tuf)
