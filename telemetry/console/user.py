"""`jetloop console user`: who may sign in to the console."""

import sys
from pathlib import Path
from typing import cast

import click

from serving.errors import RejectedError
from telemetry import users

_FILE = click.option(
    "--users",
    "path",
    required=True,
    envvar="JETLOOP_CONSOLE_USERS",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of users.",
)


@click.group(short_help="Add, list and remove the people who may sign in.")
def group() -> None:
    """Keeps the file of users that `jetloop console --users FILE` reads. It holds hashes of passwords (scrypt).

    A change counts at once, also for who is signed in.
    """


@group.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator"]), default="viewer", show_default=True)
@click.option("--no-password", is_flag=True, help="For a user who signs in through a proxy.")
@_FILE
def add(name: str, role: str, no_password: bool, path: Path) -> None:
    """Adds a user, or gives the one of that NAME another role and password.

    A viewer sees everything; an operator also writes notes. The password is asked for twice, or read as one line from
    standard input when that is no terminal.

    \b
    jetloop console user add ann --role operator --users users.json
    """
    hashed = "" if no_password else users.hash_password(_password())
    new = users.put(path, users.User(name=name, role=cast(users.Role, role), password=hashed))
    click.echo(f"{'added' if new else 'changed'} {name}, {role}, in {path}")


@group.command(name="list")
@_FILE
def list_users(path: Path) -> None:
    """Names the users and their roles."""
    for user in users.read(path):
        click.echo(f"{user.name}  {user.role}" + ("" if user.password else "  (through a proxy)"))


@group.command()
@click.argument("name")
@_FILE
def remove(name: str, path: Path) -> None:
    """Takes a user out; who is signed in is out with the next request."""
    users.remove(path, name)
    click.echo(f"removed {name} from {path}")


def _password() -> str:
    stream = sys.stdin
    if stream.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    line = stream.readline().rstrip("\r\n")
    if not line:
        raise RejectedError("no password came on standard input: give it as one line, or --no-password")
    return line
