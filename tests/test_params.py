"""params.yaml: what is wrong in it is named, with what is allowed."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.params import DataParams, GateParams, SplitParams, block, load
from serving.errors import OperatorError
from tests.conftest import ROOT
from training.settings import TrainSettings


def changed(tmp_path: Path, place: str, value: object) -> Path:
    """A copy of the repository's params.yaml with one value changed or added, or (None) taken out."""
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    *parts, last = place.split(".")
    node = raw
    for part in parts:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(raw, file)
    return path


def test_the_params_of_the_repository_are_allowed() -> None:
    """The file that ships is right, and every value arrives typed."""
    params = load(ROOT / "params.yaml")
    assert params.split.by == "auto"
    assert isinstance(params.train, TrainSettings)
    assert params.gates.max_latency_ms["cpu-ort-fp32"] > 0


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("split.by", "image", "`split.by`: Invalid enum value 'image'; allowed: auto, session, group"),
        ("split.test", 1.5, "`split.test`: Expected `float` < 1.0"),
        ("split.test", 0, "`split.test`: Expected `float` > 0.0"),
        ("split.test", "much", "`split.test`: Expected `float`, got `str`"),
        ("split.test", 0.9, "must add up to less than 1"),
        ("split.seed", -1, "`split.seed`: Expected `int` >= 0"),
        ("split.seed", None, "`split`: Object missing required field `seed`"),
        ("split.shares", [1], "`split.shares` is not a known setting; allowed there: by, validation, test, seed"),
        ("data.sessions", "", "`data.sessions`: Expected `str` of length >= 1"),
        ("data", None, "the block `data` is missing"),
        (
            "datas",
            {},
            "`datas` is not a known block; "
            "allowed: data, split, train, unseen, evaluate, export, simulate, gates, rollout",
        ),
        (
            "train.backbone",
            "vgg",
            "`train.backbone`: Invalid enum value 'vgg'; allowed: mobilenet_v3_small",
        ),
        ("train.epochs", 0, "`train.epochs`: Expected `int` >= 1"),
        ("evaluate.min_blocked_recall", 2, "`evaluate.min_blocked_recall`: Expected `float` < 1.0"),
        ("export.golden_frames", 0, "`export.golden_frames`: Expected `int` >= "),
        ("gates.max_parity_error", -1, "`gates.max_parity_error`: Expected `float` > 0.0"),
        ("gates.max_latency_ms", {"nano": 3}, "target `nano` is not <board>-<runtime>"),
        ("gates.max_latency_ms", {"cpu-ort-fp32": 0}, "Expected `float` > 0.0"),
        ("split", "session", "`split`: Expected `object`, got `str`"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(
    tmp_path: Path, place: str, value: object, says: str
) -> None:
    """Each kind of mistake ends in one line that names it."""
    with pytest.raises(OperatorError) as caught:
        load(changed(tmp_path, place, value))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: [", "line 1 is not valid YAML"),
        ("- a\n- b\n", "must hold the blocks data, split"),
        ("split: {}\nsplit: {}\n", "is not valid YAML"),
        ("", "must hold the blocks"),
    ],
)
def test_a_file_that_is_no_params_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    """YAML that cannot be read, a key given twice, and no mapping at all."""
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(OperatorError, match=says):
        load(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    """Run in another folder, the message says which is the right one."""
    with pytest.raises(OperatorError, match="root of the repository"):
        block(DataParams, tmp_path / "params.yaml")


def test_a_stage_depends_on_its_own_block_alone(tmp_path: Path) -> None:
    """A mistake in another block does not stop a stage that does not read it."""
    path = changed(tmp_path, "train.backbone", "vgg")
    assert block(SplitParams, path).by == "auto"
    assert block(GateParams, path).min_balanced_accuracy > 0
    with pytest.raises(OperatorError):
        block(TrainSettings, path)
