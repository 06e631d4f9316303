"""decision.json: temperature and threshold of a network, which its passport carries to the robot.

`unseen` and `evaluate` write one; evaluate goes on with that of unseen where there is one; `export` reads evaluate's.
"""

import json
from pathlib import Path

import msgspec

from pipelines.images_table import write_text
from serving.contracts.releases import Decision
from serving.errors import OperatorError
from serving.settings import convert

NAME = "decision.json"


def make(threshold: float, temperature: float) -> Decision:
    """With as many digits as mean something, so that it reads well in the passport."""
    return Decision(blocked_threshold=round(threshold, 6), temperature=round(temperature, 6))


def write(decision: Decision, folder: Path) -> None:
    write_text(folder / NAME, json.dumps(msgspec.to_builtins(decision), indent=2) + "\n")


def read(folder: Path) -> Decision:
    """What the stage of this folder chose.

    Raises:
        OperatorError: the file is missing or not by contract.
    """
    path = folder / NAME
    try:
        return convert(json.loads(path.read_text(encoding="utf-8")), Decision, str(path))
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro {folder.name}` first") from None
