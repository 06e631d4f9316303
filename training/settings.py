"""The `train` block of params.yaml: names, defaults and limits. Python 3.8 syntax.

The other blocks belong to pipelines/params.py, which the training board does not need.
"""

import re
from pathlib import Path
from typing import Tuple

import msgspec
from typing_extensions import Annotated, Literal

from serving.errors import OperatorError
from serving.settings import convert

PARAMS_FILE = Path("params.yaml")
# YAML 1.2, as DVC reads the file: 1e-3 is a number. PyYAML's own rule (1.1) asks for 1.0e-3.
_YAML_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


Augmentation = Literal["mirror", "move", "colours", "light", "tint", "blur", "noise"]
AUGMENTATIONS: Tuple[Augmentation, ...] = ("mirror", "move", "colours", "light", "tint", "blur", "noise")


class TrainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the network is trained. Whatever changes the outcome is here, so that DVC and MLflow record it."""

    python: Annotated[str, msgspec.Meta(min_length=1)] = "python"  # interpreter that dvc.yaml runs this stage with
    backbone: Literal["mobilenet_v3_small", "mobilenet_v2", "efficientnet_lite0", "resnet18", "alexnet"] = (
        "mobilenet_v3_small"
    )
    weights: Annotated[str, msgspec.Meta(min_length=1)] = "none"  # imagenet, none, or the path of a .pth file
    # all: every layer learns | blocks: all but the first (model.FIRST_LAYERS) | head: only the last, solved on features
    finetune: Literal["all", "blocks", "head"] = "all"
    start_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.25  # of pretrained weights in the mean with the end's
    averaged: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1  # fine-tunings that share the epochs; their weights' mean
    simulated_per_real: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0  # images that an epoch draws, where both are
    # Side of the picture that the network works on, scaled down from 224 inside its graph: 112 costs a quarter.
    resolution: Literal[112, 224] = 224
    precision: Literal["auto", "float32", "mixed"] = "auto"  # auto: mixed where a probe says that it pays here
    augment: Tuple[Augmentation, ...] = AUGMENTATIONS  # variations of the images: training/augment.py
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 12
    batch: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 32  # images a step; batch normalisation needs two
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.003  # highest of the schedule
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 1

    def __post_init__(self) -> None:
        if self.finetune == "blocks" and not self.pretrained:
            raise ValueError("`finetune: blocks` keeps the first layers of pretrained `weights`; give some, or `all`")
        if self.averaged > 1 and (not self.pretrained or self.finetune == "head"):
            raise ValueError(
                f"`averaged: {self.averaged}` is for layers fine-tuned from pretrained `weights`: of networks from "
                "scratch there is no mean, and a last layer that is solved is always the same; set it to 1"
            )
        if self.epochs % self.averaged:
            raise ValueError(
                f"`epochs: {self.epochs}` are those of all {self.averaged} fine-tunings that are `averaged`, in equal "
                f"shares; set a multiple of {self.averaged}"
            )

    @property
    def pretrained(self) -> bool:
        """Whether the training starts from weights that know something."""
        return self.weights != "none"


class _Data(msgspec.Struct, frozen=True):
    sessions: Annotated[str, msgspec.Meta(min_length=1)]


class _Params(msgspec.Struct, frozen=True):
    train: TrainSettings
    data: _Data


def read_params(path: Path = PARAMS_FILE) -> Tuple[TrainSettings, Path]:
    """The `train` block of params.yaml, and the folder of the session zips.

    Raises:
        OperatorError: the file cannot be read, or a key or value is unknown, missing or not allowed.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _YAML_FLOAT, list("-+.0123456789"))
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise OperatorError(f"{path} is not here; run this in the root of the repository") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise OperatorError(f"{path} cannot be read: {' '.join(str(problem).split())}") from None
    params = convert(raw, _Params, str(path))
    return params.train, Path(params.data.sessions)
