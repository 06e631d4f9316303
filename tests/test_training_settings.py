"""The `train` block of params.yaml as the training board reads it."""

from pathlib import Path

import pytest

from serving.errors import OperatorError
from tests.conftest import ROOT
from training.settings import TrainSettings, read_params


def params(folder: Path, train: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(f"data:\n  sessions: data/sample\n  labels: data/labels.csv\ntrain:\n  {train}\nother: [1]\n")
    return path


def test_the_repository_s_own_block_is_read() -> None:
    """params.yaml as shipped passes its checks."""
    settings, sessions = read_params(ROOT / "params.yaml")
    assert isinstance(settings, TrainSettings)
    assert sessions == Path("data/sample")


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """1e-3 is a number (YAML 1.2), not a text (YAML 1.1)."""
    settings, _ = read_params(params(tmp_path, "learning_rate: 1e-3"))
    assert settings.learning_rate == 0.001


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("epoch: 3", "`train.epoch` is not a known setting; allowed there: python, backbone"),
        ("epochs: 0", "`train.epochs`: Expected `int` >= 1"),
        ("epochs: many", "`train.epochs`"),
        ("backbone: resnet50", "allowed: mobilenet_v3_small, mobilenet_v2, efficientnet_lite0, resnet18, alexnet"),
        ("resolution: 100", "allowed: 112, 224"),
        ("learning_rate: 0", "`train.learning_rate`"),
        ("finetune: blocks", "`finetune: blocks` keeps the first layers of pretrained `weights`; give some, or `all`"),
        ("averaged: 4", "`averaged: 4` is for layers fine-tuned from pretrained `weights`"),
        ("{weights: imagenet, finetune: head, averaged: 4}", "`averaged: 4` is for layers fine-tuned"),
        ("{weights: imagenet, epochs: 6, averaged: 4}", "`epochs: 6` are those of all 4 fine-tunings"),
        ("start_share: 1", "`train.start_share`: Expected `float` < 1.0"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(tmp_path: Path, line: str, named: str) -> None:
    """The message names key, value and choices."""
    with pytest.raises(OperatorError) as problem:
        read_params(params(tmp_path, line))
    assert named in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_file_that_is_missing_or_no_yaml_is_told_in_one_line(tmp_path: Path) -> None:
    """No traceback of the YAML parser reaches the terminal."""
    with pytest.raises(OperatorError, match="root of the repository"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: [unclosed")
    with pytest.raises(OperatorError) as problem:
        read_params(tmp_path / "params.yaml")
    assert "\n" not in str(problem.value)
