"""`jetloop-robot doctor`: what is there, what is missing, what to do. A table, and an exit code for machines.

Every check is a function that asks one thing and changes nothing; the robot may be driving meanwhile. What concerns
this machine is in doctor_machine.py, what is reached over the network in doctor_network.py.
"""

import json
import logging
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional

import click

from serving.config import RobotConfig, load
from serving.errors import JetloopError, OperatorError

log = logging.getLogger("doctor")

OK, WARN, FAIL = "ok", "warn", "fail"
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        level: `ok`; `warn`: the robot runs, but look at it; `fail`: it does not run as it should.
        what: two or three words.
        found: one line.
        todo: what to do, one line; empty when there is nothing.
    """

    level: str
    what: str
    found: str
    todo: str = ""


Check = Callable[[], Finding]


def checks(config: Optional[RobotConfig]) -> List[Check]:
    """The table of all checks, in the order in which one depends on another.

    Args:
        config: None where robot.toml is not good: then what needs none of it.
    """
    from serving import doctor_machine as machine
    from serving import doctor_network as network

    target = config.engine.target if config else ""
    found: List[Check] = [
        machine.python,
        lambda: machine.jetpack(target),
        machine.clock,
        machine.memory,
    ]
    if config is None:
        return found
    known = config  # for the type checker, inside the functions below
    return [
        *found,
        lambda: machine.disk(Path(known.robot.state_dir)),
        lambda: machine.engine(known.engine),
        lambda: machine.body(known.hardware),
        lambda: machine.camera(known.hardware),
        lambda: machine.motor_board(known.hardware),
        lambda: machine.battery(known.hardware),
        lambda: network.certificates(known.mqtt),
        lambda: network.root_of_trust(Path(known.repository.root)),
        lambda: network.repository(known.repository),
        lambda: network.broker(known.mqtt),
        lambda: machine.daemon(Path(known.robot.state_dir)),
    ]


def examine(config_path: Path) -> Iterator[Finding]:
    """Asks everything, one answer after the other; a check that fails itself is a finding too."""
    config: Optional[RobotConfig] = None
    try:
        config = load(config_path)
        yield Finding(OK, "robot.toml", f"{config.robot.site}/{config.robot.name}, ring {config.robot.ring}")
    except OperatorError as problem:
        yield Finding(FAIL, "robot.toml", str(problem), "the checks that need it are left out until it is good")
    for check in checks(config):
        try:
            yield check()
        except JetloopError as problem:
            yield Finding(FAIL, "doctor", str(problem))
        except Exception as problem:  # one check that breaks must not hide what the others find
            log.debug("a check failed", exc_info=True)
            yield Finding(FAIL, "doctor", f"a check failed: {problem!r}", "report this as a fault of jetloop")


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of {level, what, found, todo} instead of the table.")
def command(config_path: Path, as_json: bool) -> int:
    """Say what this robot has, what is missing, and what to do.

    Reads robot.toml; looks at JetPack, the engine's runtime, camera, motors, clock, disk, memory and certificates, and
    asks the repository and the broker. Changes nothing, and the robot may be driving. Ends with 1 when something is
    `fail`, with 0 otherwise.

    Example: jetloop-robot doctor --config robot.toml
    """
    found: List[Finding] = []
    for finding in examine(config_path):
        found.append(finding)
        if not as_json:
            _print(finding)
    failed = sum(finding.level == FAIL for finding in found)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found], indent=2, ensure_ascii=False))
    else:
        warned = sum(finding.level == WARN for finding in found)
        click.echo(f"{len(found) - failed - warned} ok, {warned} warn, {failed} fail")
    return 1 if failed else 0


def _print(finding: Finding) -> None:
    click.echo(f"{click.style(f'{finding.level:<4}', fg=_COLOURS[finding.level])}  {finding.what:<13}  {finding.found}")
    if finding.todo:
        click.echo(f"{'':<21}-> {finding.todo}")
