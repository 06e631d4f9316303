"""Where a model comes from: the git commit, and DVC's hashes of the data it was made of.

Nothing is computed here that git or DVC know: the hashes are those that `dvc repro` wrote into dvc.lock when it ran the
stages `validate` and `split`, just before.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from serving.errors import OperatorError

LOG = logging.getLogger(__name__)
LOCK_FILE = Path("dvc.lock")


class Commit(NamedTuple):
    sha: str  # `unknown` outside of a git repository
    dirty: bool  # the files differed from it


def commit() -> Commit:
    """The commit that is checked out; dvc.lock, which every run rewrites, does not make it dirty."""
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return Commit("unknown", True)
    changed = _git("status", "--porcelain", "--", ".") or ""
    paths = [line[3:].strip('"') for line in changed.splitlines()]
    return Commit(sha.strip(), any(Path(path).name != LOCK_FILE.name for path in paths))


def _git(*arguments: str) -> Optional[str]:
    """What git prints, or None where there is no repository (or no git)."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as problem:
        LOG.warning("git cannot be asked for the commit: %s", problem)
        return None
    if done.returncode:
        LOG.warning("git %s: %s", arguments[0], done.stderr.strip().splitlines()[:1])
        return None
    return done.stdout


def data_hashes(sessions: Path, lock_file: Path = LOCK_FILE) -> Dict[str, str]:
    """DVC's hashes by path: the sessions, the corrections, the schema, the split.

    Returns:
        Empty, with a warning, when the stages were not run by DVC on the sessions as they are now.

    Raises:
        OperatorError: dvc.lock cannot be read.
    """
    import yaml

    try:
        lock: Any = yaml.safe_load(lock_file.read_text(encoding="utf-8"))
        stages = lock["stages"]
        entries = [entry for entry in stages["validate"]["deps"] if not entry["path"].endswith(".py")]
        entries += [entry for entry in stages["split"]["outs"] if entry["path"].endswith("split.csv")]
        hashes = {str(entry["path"]): str(entry["md5"]) for entry in entries}
        known = next((entry for entry in entries if Path(entry["path"]) == sessions), None)
    except FileNotFoundError:
        known, hashes = None, {}
    except (KeyError, TypeError):  # a lock that has not both stages yet
        known, hashes = None, {}
    except (OSError, yaml.YAMLError) as problem:
        raise OperatorError(f"{lock_file} cannot be read ({problem}); delete it and run `dvc repro`") from None
    if known is None or known.get("size") != _size(sessions):
        LOG.warning("the data has no DVC hash (%s does not name %s as it is now): run `dvc repro`", lock_file, sessions)
        return {}
    return hashes


def _size(folder: Path) -> int:
    """Bytes of the files in it, as DVC adds them up."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def environment() -> List[str]:
    """`name==version` of every installed package, after the Python version: what `pip freeze` tells, at once."""
    from importlib import metadata

    packages = {f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions()}
    return [f"# Python {sys.version.split()[0]}", *sorted(packages, key=str.lower)]
