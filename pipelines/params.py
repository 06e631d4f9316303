"""params.yaml, typed: one struct a block, one block a stage.

A stage asks for its own block alone (`block(SplitParams)`), so that it depends on nothing that `dvc.yaml` does not
name for it. `load` checks every block at once. The block `train` is defined in training/settings.py, because the
training board reads it without this package; the block `simulate` in simulator/settings.py.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from serving.contracts.releases import Target
from serving.errors import OperatorError, RejectedError
from serving.settings import convert
from simulator.settings import SuiteSettings
from training.settings import TrainSettings

PARAMS_FILE = "params.yaml"

Text = Annotated[str, msgspec.Meta(min_length=1)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
ClosedShare = Annotated[float, msgspec.Meta(ge=0, le=1)]


class DataParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the images and what is said about them lie; paths from the root of the repository."""

    sessions: Text  # folder of session zips
    labels: Text  # corrections of labels
    schema: Text  # expectations


class SplitParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the images are divided; training gets what validation and test leave."""

    by: Literal["auto", "session", "group"]
    validation: Share
    test: Share
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) must add up to less than 1: "
                "training gets what they leave"
            )


class EvaluateParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the robot's threshold is chosen: see `cross_validation.choose` and `evaluate.decide`."""

    min_blocked_recall: Share
    miss_cost: Annotated[float, msgspec.Meta(ge=1, le=100)] = 2.0  # false stops that one missed obstacle is worth


class UnseenParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a network is trained to be judged on sources it has not seen; 0: never."""

    folds: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5


class ExportParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    golden_frames: Annotated[int, msgspec.Meta(ge=2, le=256)]
    int8: Literal["auto", "yes", "no"] = "no"  # auto: kept where it is as accurate, on a CPU where also quicker


class GateParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the release service asks of a model version before it builds anything."""

    min_balanced_accuracy: ClosedShare
    min_blocked_recall: ClosedShare
    max_parity_error: Annotated[float, msgspec.Meta(gt=0)]  # of a logit, over the golden frames
    max_latency_ms: dict[str, Annotated[float, msgspec.Meta(gt=0)]]  # p99 of one inference, per target
    # Of the stage `simulate`; None: not asked.
    max_collisions_per_100m: Annotated[float, msgspec.Meta(ge=0)] | None = None  # upper end of the 95 % interval
    min_distance_m_per_min: Annotated[float, msgspec.Meta(gt=0)] | None = None  # standing still hits nothing
    # Against what the fleet runs: how far the upper end of the new one's 95 % interval may lie below. None: not asked.
    max_recall_loss: ClosedShare | None = None
    max_accuracy_loss: ClosedShare | None = None
    require_data_checks: bool = False  # the stage `validate` passed
    require_lineage: bool = False  # a clean git commit, and DVC's hashes of the data
    max_engine_mb: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}  # size of the file, per target
    max_memory_mb: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}  # peak of a process that runs it, per target

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "max_engine_mb", "max_memory_mb"):
            for target in getattr(self, name):
                try:
                    Target.parse(target)
                except RejectedError as problem:
                    raise ValueError(f"{name}: {problem}") from None


class RolloutParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a champion comes to its robots, and what makes the service pause or withdraw it (release/rollout.py).

    Shares and ratios are held against the near end of a 95 % interval: a handful of bad moments proves nothing.
    """

    steps: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...], msgspec.Meta(min_length=1)] = (0.1, 0.5, 1)
    step_min_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 600.0
    min_robots: Annotated[int, msgspec.Meta(ge=1)] = 2  # that told of the release; fewer where the share holds fewer
    min_decisions: Annotated[int, msgspec.Meta(ge=1)] = 2000  # by all of them together, in this step
    max_events_ratio: Annotated[float, msgspec.Meta(ge=1)] = 2.0  # crashes, collisions, interventions an hour driven
    max_latency_ratio: Annotated[float, msgspec.Meta(ge=1)] = 1.5  # p99, the median of the robots
    max_blocked_change: Share = 0.2  # of the share of decisions that say blocked, up or down
    max_went_back: Share = 0.1  # share of robots that went back, or refused it
    # The others pause the rollout and leave it to a person.
    withdraw_on: tuple[Literal["crashes", "collisions", "interventions", "went_back", "latency", "blocked"], ...] = (
        "crashes",
        "collisions",
        "went_back",
    )
    canary_first: bool = False  # a champion must have been healthy as canary
    canary_min_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 3600.0

    def __post_init__(self) -> None:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 1:
            raise ValueError(f"steps must rise and end with 1.0, they are {list(self.steps)}")


class Params(NamedTuple):
    """All of params.yaml."""

    data: DataParams
    split: SplitParams
    train: TrainSettings
    unseen: UnseenParams
    evaluate: EvaluateParams
    export: ExportParams
    simulate: SuiteSettings
    gates: GateParams
    rollout: RolloutParams


BLOCKS: dict[type[msgspec.Struct], str] = {
    DataParams: "data",
    SplitParams: "split",
    TrainSettings: "train",
    UnseenParams: "unseen",
    EvaluateParams: "evaluate",
    ExportParams: "export",
    SuiteSettings: "simulate",
    GateParams: "gates",
    RolloutParams: "rollout",
}

B = TypeVar("B", bound=msgspec.Struct)


def load(path: Path | str = PARAMS_FILE) -> Params:
    """Reads and checks all of `path`.

    Raises:
        OperatorError: the file cannot be read, or a block, key or value is unknown, missing or not allowed.
    """
    raw = _read(Path(path))
    unknown = [str(name) for name in raw if name not in BLOCKS.values()]
    if unknown:
        raise OperatorError(f"{path}: `{unknown[0]}` is not a known block; allowed: {', '.join(BLOCKS.values())}")
    return Params(**{name: _block(raw, struct, Path(path)) for struct, name in BLOCKS.items()})  # type: ignore[arg-type]


def block(struct: type[B], path: Path | str = PARAMS_FILE, *, default: B | None = None) -> B:
    """Reads and checks the one block of `path` that `struct` describes; the others may hold anything.

    Args:
        default: what holds where the file has no such block; None: it must be there.

    Raises:
        OperatorError: the file cannot be read, the block is missing, or a key or value in it is not allowed.
    """
    raw = _read(Path(path))
    if default is not None and BLOCKS[struct] not in raw:
        return default
    return _block(raw, struct, Path(path))


def _read(path: Path) -> dict[Any, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))  # YAML 1.2, as DVC reads it
    except FileNotFoundError:
        raise OperatorError(f"{path} is not here; run this in the root of the repository") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise OperatorError(f"{path} cannot be read: {problem}") from None
    except MarkedYAMLError as problem:
        line = f" line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise OperatorError(f"{path}{line} is not valid YAML: {' '.join(str(problem.problem).split())}") from None
    except (YAMLError, ValueError) as problem:
        raise OperatorError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(raw, dict):
        raise OperatorError(f"{path} must hold the blocks {', '.join(BLOCKS.values())}")
    return raw


def _block(raw: dict[Any, Any], struct: type[B], path: Path) -> B:
    name = BLOCKS[struct]
    if name not in raw:
        raise OperatorError(f"{path}: the block `{name}` is missing")
    # Wrapped, so that messages name `split.by` and not `by`.
    wrapper = msgspec.defstruct("Block", [(name, struct)], forbid_unknown_fields=True)
    checked: B = getattr(convert({name: raw[name]}, wrapper, str(path)), name)
    return checked
