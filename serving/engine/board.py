"""Which board this is, and whether an engine was built for such a one. Of GPU and runtime the engine worker knows."""

from pathlib import Path

from serving.contracts.releases import EngineKey, Target
from serving.contracts.targets import TargetKind, kind_of

MODEL_FILE = Path("/proc/device-tree/model")  # what a board calls itself, such as NVIDIA Jetson Nano Developer Kit


def wrong_board(kind: TargetKind, model_file: Path = MODEL_FILE) -> str:
    """Why this machine is not the board of a target; empty when it is, or when any machine is."""
    if not kind.says:
        return ""
    try:
        said = model_file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        said = "no Jetson"
    return "" if kind.says in said else f"{kind.name} is for a board that says `{kind.says}`; this one says `{said}`"


def wrong_key(key: EngineKey, target: str, model_file: Path = MODEL_FILE) -> str:
    """Why an engine with this key is not for a robot of a target; empty when it is, as far as the board goes.

    Raises:
        OperatorError: the table of targets has no such row.
    """
    own = Target.parse(target)
    if (key.board, key.precision) != (own.board, own.precision):
        return f"the engine was built for {key.board} in {key.precision}, this robot is {target}"
    return wrong_board(kind_of(target), model_file)
