"""`jetloop-robot build`: builds an engine on the board that runs it, and hands it to the release service.

The command alone; what it does is in build_releases.py: order (build_order.py), checks, building and measuring
(build_engine.py), handing in (build_handin.py). Whether an engine drives is not decided here: the service judges the
report, and every robot checks what it installs.
"""

from pathlib import Path
from typing import Optional

import click

from serving.command_line import log_to_stderr


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot, or of a spare board: its [engine] and [repository].",
)
@click.option("--service", help="URL of the release service.  [default: repository.url]")
@click.option(
    "--key", "key_path", type=click.Path(path_type=Path, dir_okay=False), help="[default: builder.pem in state_dir]"
)
@click.option("--new-key", is_flag=True, help="Make the key, print its public half, and end.")
@click.option("--release", "release_id", help="Build this one.  [default: all that wait for this target]")
@click.option(
    "--workspace-mb", type=click.FloatRange(16, 16_000), default=256, show_default=True, help="For TensorRT to try in."
)
@click.option(
    "--timeout-s", type=click.FloatRange(10, 86_400), default=1800, show_default=True, help="For one engine to build."
)
def command(
    config_path: Path,
    service: Optional[str],
    key_path: Optional[Path],
    new_key: bool,
    release_id: Optional[str],
    workspace_mb: float,
    timeout_s: float,
) -> None:
    """Build what the release service waits for, on this board; its twins take the same engine.

    Reads robot.toml, the signed orders of the repository and their ONNX files; writes state_dir/build. Each engine is
    built in a process of its own under engine.python, measured on the golden frames, and handed in with its report.
    Best with the robot stopped, or on an identical spare board. The release service publishes it, or says why not.

    \b
    once   jetloop-robot build --new-key > jetbot-1.pub     to FOLDER/builders/ of the release service
    then   jetloop-robot build
    """
    from serving import build_engine, build_handin
    from serving.build_releases import build_all
    from serving.config import load
    from serving.contracts.targets import kind_of
    from serving.lock import only_one

    log_to_stderr()
    config = load(config_path)
    state_dir = Path(config.robot.state_dir)
    key_path = key_path or state_dir / "builder.pem"
    if new_key:
        click.echo(build_handin.new_key(key_path), nl=False)
        click.echo(f"copy this to FOLDER/builders/{config.robot.name}.pub of the release service", err=True)
        return
    kind_of(config.engine.target)
    limits = build_engine.Limits(workspace_mb, timeout_s)
    with only_one(state_dir / "build"):
        done = build_all(config, service or config.repository.url, key_path, release_id, limits)
    click.echo(f"handed in: {', '.join(done)}" if done else f"nothing waits for {config.engine.target}")
