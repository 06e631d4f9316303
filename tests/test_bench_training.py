"""The benchmarks of training, on a handful of images: their figures are what they say."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import ablation, train
from tests.bench_sets import data, weights  # noqa: F401


def test_the_ablation_judges_every_set_and_keeps_its_answers(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row has every set and source; asked for another threshold, the command trains nothing again."""
    options = ["--data", str(data), "--weights", str(weights), "--rooms", "2", "--images", "4", "--epochs", "2"]
    options += ["--averaged", "2", "--seed", "1", "--seed", "3", "--network", str(weights)]
    options += ["--only", "whole", "--only", "alone", "--only", "network"]
    options += ["--out", str(tmp_path / "ablation.json")]
    done = CliRunner().invoke(ablation.command, options)
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "ablation.json").read_text())
    rows = {"the whole recipe", "simulated rooms alone", "the last layer alone", "network mobilenet_v3_small"}
    assert set(told) == {f"{row}, seed {seed}" for row in rows for seed in (1, 3)}
    for row in told.values():
        assert set(row["sets"]) == {"anna_hall", "anna_loft", "ben_den", "mean"}
        assert set(row["sources"]) == {"anna", "ben", "mean"}
        assert len(row["answers"]) == 18
        assert row["sources"]["ben"]["threshold"] == pytest.approx(1 / 3)
    seeds = [told[f"the whole recipe, seed {seed}"]["answers"] for seed in (1, 3)]
    assert seeds[0] != seeds[1]
    monkeypatch.setattr(ablation, "leave_out", None)
    done = CliRunner().invoke(ablation.command, [*options, "--miss-cost", "4"])
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "ablation.json").read_text())
    assert told["the whole recipe, seed 3"]["sources"]["ben"]["threshold"] == pytest.approx(1 / 5)


def test_every_part_of_the_recipe_has_its_row() -> None:
    """Each row changes what its name says, and no two are the same recipe."""
    settings = train.TrainSettings(backbone="mobilenet_v2", weights="some.pth", finetune="blocks", averaged=2)
    rows = ablation.recipes(settings, 10)
    assert len(set(rows.values())) == len(rows)
    for kind in ablation.AUGMENTATIONS:
        left = rows[f"without the variation `{kind}`"].settings.augment
        assert set(ablation.AUGMENTATIONS) - set(left) == {kind}


def test_both_recipes_are_timed_and_judged(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each recipe, judged on the source that none has seen; the speedup is the ratio of the times."""
    monkeypatch.setattr(train, "NOTEBOOK_VALIDATION", 4)
    options = ["--data", str(data), "--weights", str(weights), "--unseen", "ben", "--repeats", "1"]
    options += ["--notebook-epochs", "1", "--epochs", "2", "--averaged", "2", "--out", str(tmp_path / "train.json")]
    done = CliRunner().invoke(train.command, options)
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "train.json").read_text())
    assert told["images"] == {"learned": 12, "judged": 6}
    assert set(told["median"]) == {"ours, blocks", "ours, last layer", "notebook"}
    for name, result in told["median"].items():
        assert result["seconds"] > 0
        assert told["speedup"][name] == pytest.approx(told["median"]["notebook"]["seconds"] / result["seconds"])
