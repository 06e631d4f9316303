"""What every command line of jetloop shares: commands loaded when called, errors in one line, logs in one form."""

import importlib
import logging
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import click

from serving.errors import JetloopError

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LazyGroup(click.Group):
    """A click group that imports a command's module only when that command is called, so that `--help` stays quick.

    Args:
        commands_at: name -> (`module:attribute` of the click command, one line of help).
    """

    def __init__(self, *args: Any, commands_at: Dict[str, Tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(self._commands_at)

    def get_command(self, ctx: click.Context, name: str) -> Optional[click.Command]:
        if name not in self._commands_at:
            return None
        module, _, attribute = self._commands_at[name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._commands_at.items()])


def run(command: Callable[..., Any]) -> None:
    """Runs a click command as a program: a JetloopError becomes one line and exit code 1, Ctrl-C exit code 130."""
    try:
        code = command(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except JetloopError as problem:
        click.echo(f"error: {problem}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def log_to_stderr(level: str = "INFO") -> None:
    """One form of log line for every long-running command; the level is a name of the logging module."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=LOG_FORMAT)
