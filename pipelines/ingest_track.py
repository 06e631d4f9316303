"""DVC and params.yaml after an ingest: the folder of sessions becomes a new version, and the pipeline reads it."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.params import PARAMS_FILE, DataParams, block
from pipelines.sessions import session_files
from serving.errors import OperatorError

SESSIONS = Path("data/sessions")
SAMPLE = Path("data/sample")


def target(params: Path = Path(PARAMS_FILE)) -> Path:
    """The folder that a new session goes into: `data.sessions`, or data/sessions while that is still the sample.

    Raises:
        OperatorError: params.yaml is not here or wrong.
    """
    sessions = Path(block(DataParams, params).sessions)
    return SESSIONS if sessions == SAMPLE else sessions


def refuse_unfetched(into: Path) -> None:
    """Sees that all sessions that DVC knows are here: `dvc add` would drop the others from the data.

    Raises:
        OperatorError: some are not.
    """
    pointer = Path(f"{into}.dvc")
    if not pointer.exists():
        return
    try:
        out = YAML(typ="safe", pure=True).load(pointer.read_text(encoding="utf-8"))["outs"][0]
        known = int(out.get("nfiles", 0))
    except (OSError, YAMLError, KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        raise OperatorError(f"{pointer} cannot be read: {problem!r}; restore it with git") from None
    here = len(session_files(into))
    if here < known:
        raise OperatorError(
            f"{into} holds {here} of the {known} sessions in {pointer}; fetch the others with `dvc pull {pointer}`, "
            f"or, if you have withdrawn them, run `dvc add {into}` first"
        )


def track(into: Path, params: Path = Path(PARAMS_FILE)) -> list[Path]:
    """Runs `dvc add`, and points data.sessions to `into` where it is still the sample.

    Returns:
        The files that changed and that git should hold.

    Raises:
        OperatorError: DVC fails, or params.yaml cannot be changed.
    """
    held = [Path(f"{into}.dvc"), into.parent / ".gitignore", params]
    before = [_content(path) for path in held]
    _dvc_add(into)
    if Path(block(DataParams, params).sessions) == SAMPLE:
        _point_to(into, params)
    return [path for path, content in zip(held, before, strict=True) if _content(path) != content]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _dvc_add(into: Path) -> None:
    from rich.console import Console

    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(into)]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    with Console(stderr=True).status(f"dvc add {into}"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = said[0].removeprefix("ERROR: ") if said else f"exit code {done.returncode}"
        raise OperatorError(
            f"the session is in {into}, but `dvc add {into}` failed: {why}; mend that and run `jetloop ingest` again"
        )


def _point_to(into: Path, params: Path) -> None:
    """Changes `data.sessions` in params.yaml and nothing else: comments and order stay."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    raw = yaml.load(params.read_text(encoding="utf-8"))
    raw["data"]["sessions"] = into.as_posix()
    written = io.StringIO()
    yaml.dump(raw, written)
    partial = params.with_name(f".{params.name}.{os.getpid()}.partial")
    try:
        partial.write_text(written.getvalue(), encoding="utf-8")
        os.replace(partial, params)
    except OSError as problem:
        raise OperatorError(
            f"{params} cannot be written ({problem.strerror}); set data.sessions to {into} by hand"
        ) from None


def next_steps(changed: list[Path], session: str) -> str:
    """What is left to the person: the commit is theirs."""
    if not changed:
        return ""
    return (
        "\nnow:\n"
        f"  git add {shlex.join(map(str, changed))}\n"
        f'  git commit -m "Add session {session}"\n'
        "  dvc push      # where a remote is set up\n"
        "  dvc repro     # retrain"
    )
