"""`jetloop-robot`: the commands on a robot. The daemon itself is daemon.py."""

from pathlib import Path

import click

from serving.command_line import LazyGroup, run
from serving.errors import OperatorError

COMMANDS = {
    "run": ("serving.run:command", "Run the robot: camera, model, motors, updates and events."),
    "status": ("serving.local.commands:status", "Tell what the robot on this machine does."),
    "stop": ("serving.local.commands:stop", "Motors to zero, until `resume`."),
    "resume": ("serving.local.commands:resume", "Drive again after `stop`."),
    "rollback": ("serving.local.commands:rollback", "Go back to the engine before."),
    "label": ("serving.local.commands:label", "Keep the next frame as an image of `blocked` or `free`."),
    "capture": ("serving.local.commands:capture", "Sessions of labelled images: begin, finish, discard."),
    "import": ("serving.import_release:command", "Take signed releases from a folder, such as a USB stick."),
    "build": ("serving.build:command", "Build the engine of a release on this board, for it and its twins."),
    "doctor": ("serving.doctor:command", "Say what this robot has, what is missing, and what to do."),
    "check-config": ("serving.cli:check_config", "Read robot.toml and say what is wrong with it, if anything."),
    "example-config": ("serving.cli:example_config", "Print a robot.toml to begin with."),
}

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot.",
)


@click.group(cls=LazyGroup, commands_at=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jetloop")
def group() -> None:
    """Runs one robot of the fleet: it pulls signed models, checks them, drives with them and tells what it meets.

    \b
    jetloop-robot example-config > robot.toml    then set name, site, repository and broker
    jetloop-robot check-config
    jetloop-robot run
    """


@click.command()
@_config_option
def check_config(config_path: Path) -> None:
    """Read robot.toml and say what is wrong with it, if anything.

    Reads that file alone; starts nothing, opens no camera.

    Example: jetloop-robot check-config --config robot.toml
    """
    from serving.config import load
    from serving.engine.client import backend_file

    config = load(config_path)
    backend_file(config.engine.target)
    for what, path in (("repository.root", config.repository.root), ("mqtt.ca", config.mqtt.ca)):
        if path and not Path(path).is_file():
            raise OperatorError(f"{config_path}: {what} is `{path}`, which is no file")
    robot = config.robot
    click.echo(f"{config_path} is good: {robot.site}/{robot.name}, ring {robot.ring}, target {config.engine.target}")


@click.command()
def example_config() -> None:
    """Print a robot.toml to begin with, every setting with its default.

    Example: jetloop-robot example-config > robot.toml
    """
    from serving.config_example import EXAMPLE

    click.echo(EXAMPLE, nl=False)


def main() -> None:
    run(group)


if __name__ == "__main__":
    main()
