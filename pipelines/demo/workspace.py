"""The scratch workspace: a clone of the checkout in which the demo may write, so that the checkout stays clean."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from serving.errors import OperatorError

# What a demo makes in its folder; anything else there is somebody's own.
_OWN = {"workspace", "logs", "releases", "robot", "mlflow", "incoming", "summary.json", "summary.tmp"}
_OWN |= {"events.db", "events.db-wal", "events.db-shm"}
_AUTHOR = {
    "GIT_AUTHOR_NAME": "jetloop demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "jetloop demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
}


def environment(tracking_uri: str) -> dict[str, str]:
    """What every process of the demo is started with: this interpreter first, this demo's MLflow."""
    return {
        **os.environ,
        **_AUTHOR,
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def checkout() -> Path:
    """The checkout that the command was started in.

    Raises:
        OperatorError: the current folder is not a git checkout of jetloop.
    """
    found = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    root = Path(found.stdout.strip())
    if found.returncode or not (root / "dvc.yaml").exists():
        raise OperatorError(
            "`jetloop demo` works on a git checkout of jetloop: change into one (`git clone`), not a copy"
        )
    return root


def make(source: Path, folder: Path, *, clear: Path) -> None:
    """Clones `source` with its uncommitted changes into `folder`, after removing what an earlier demo left in `clear`.

    Raises:
        OperatorError: the folder cannot be written, or git refuses.
    """
    try:
        if clear.exists():
            _only_of_a_demo(clear)
            shutil.rmtree(clear)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OperatorError(f"cannot write {folder}: {problem.strerror}; name another with --folder") from None
    git("clone", "--quiet", "--no-hardlinks", str(source), str(folder), folder=folder.parent)
    _bring_changes(source, folder)
    commit(folder, "the checkout's uncommitted changes")


def commit(folder: Path, message: str) -> None:
    """Commits everything that git does not ignore; does nothing when nothing changed."""
    git("add", "--all", folder=folder)
    if git("status", "--porcelain", folder=folder):
        git("commit", "--quiet", "--no-verify", "--message", message, folder=folder)


def git(*arguments: str, folder: Path) -> str:
    """Runs git and returns what it printed.

    Raises:
        OperatorError: git failed; the message is its last line.
    """
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **_AUTHOR}, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OperatorError(f"git {arguments[0]} failed in {folder}: {last}")
    return done.stdout


def set_params(folder: Path, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Changes values in the workspace's params.yaml, keeping its comments; `changes` is block -> key -> value."""
    yaml = YAML()
    path = folder / "params.yaml"
    params = yaml.load(path.read_text())
    for block, values in changes.items():
        params[block].update(values)
    with path.open("w") as file:
        yaml.dump(params, file)


def _only_of_a_demo(folder: Path) -> None:
    """Raises OperatorError when the folder that is to be removed holds anything but an earlier demo."""
    strange = {path.name for path in folder.iterdir()} - _OWN
    if strange:
        raise OperatorError(f"{folder} is not an earlier demo's ({min(strange)} is in it); name another with --folder")


def _bring_changes(source: Path, folder: Path) -> None:
    """Copies what is modified or new in `source`, and removes what is deleted there."""
    listed = git("ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deleted", folder=source)
    for name in filter(None, set(listed.split("\0"))):
        origin, copy = source / name, folder / name
        if origin.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, copy)
        else:
            copy.unlink(missing_ok=True)
