"""The benchmarks of training, on a handful of images: their figures are what they say."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.errors import OperatorError
from tests.bench import ablation, train
from tests.bench_sets import data, weights  # noqa: F401
from training.settings import AUGMENTATIONS


def test_the_ablation_judges_every_set_and_keeps_its_answers(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row has every set and source; asked for another threshold, the command trains nothing again."""
    monkeypatch.chdir(tmp_path)  # where build/cache is
    options = ["--data", str(data), "--weights", str(weights), "--rooms", "2", "--images", "4", "--epochs", "2"]
    options += ["--averaged", "2", "--seed", "1", "--seed", "3", "--network", str(weights)]
    options += ["--only", "whole", "--only", "alone", "--only", "network"]
    options += ["--out", str(tmp_path / "ablation.json")]
    done = CliRunner().invoke(ablation.command, options)
    told = json.loads((tmp_path / "ablation.json").read_text())
    rows = {"the whole recipe", "simulated rooms alone", "the last layer alone", "network mobilenet_v3_small"}
    assert set(told) == {f"{row}, seed {seed}" for row in rows for seed in (1, 3)}
    for row in told.values():
        assert set(row["sets"]) == {"anna_hall", "anna_loft", "ben_den", "mean"}
        assert set(row["sources"]) == {"anna", "ben", "mean"}
        assert len(row["answers"]) == 18
        assert row["sources"]["ben"]["threshold"] == pytest.approx(1 / 3)
    whole = [told[f"the whole recipe, seed {seed}"] for seed in (1, 3)]
    assert whole[0]["answers"] != whole[1]["answers"]
    of_seeds = [sum(row["sets"]["mean"][name] for row in whole) / 2 for name in ("balanced_accuracy", "blocked_recall")]
    assert done.exit_code == int(of_seeds[0] < 0.85 or of_seeds[1] < 0.90)
    assert f"their mean: balanced accuracy {of_seeds[0]:.3f}, blocked recall {of_seeds[1]:.3f}" in " ".join(
        done.output.split()
    )
    monkeypatch.setattr(ablation, "leave_out", None)
    done = CliRunner().invoke(ablation.command, [*options, "--miss-cost", "4"])
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "ablation.json").read_text())
    assert told["the whole recipe, seed 3"]["sources"]["ben"]["threshold"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v3_small"])
def test_every_part_of_the_recipe_has_its_row(backbone: str) -> None:
    """Each row changes what its name says, and no two are the same recipe."""
    settings = train.TrainSettings(backbone=backbone, weights="some.pth", finetune="blocks", averaged=2)
    rows = ablation.recipes(settings, 10)
    assert len(set(rows.values())) == len(rows)
    for kinds in ablation.VARIATIONS:
        left = rows[f"without the variations {', '.join(kinds)}"].settings.augment
        assert set(settings.augment) - set(left) == set(kinds)
    assert sorted(kind for kinds in ablation.VARIATIONS for kind in kinds) == sorted(AUGMENTATIONS)


def test_both_recipes_are_timed_and_judged(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each recipe once for each source left out; interrupted, the command goes on; ended, it begins anew."""
    monkeypatch.setattr(train, "NOTEBOOK_VALIDATION", 2)
    out = tmp_path / "train.json"
    options = ["--data", str(data), "--weights", str(weights), "--notebook-epochs", "1", "--epochs", "2"]
    options += ["--averaged", "2", "--out", str(out)]
    with monkeypatch.context() as interrupted:
        interrupted.setattr(train, "notebook", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(train.command, options).exit_code == 1
    begun = json.loads(out.read_text())["runs"]
    assert [run["recipe"] for run in begun] == ["ours, blocks", "ours, last layer"]
    for other in (["--unseen", "ben"], ["--epochs", "4"]):
        refused = CliRunner().invoke(train.command, [*options, *other])
        assert isinstance(refused.exception, OperatorError)
        assert "interrupted run with other options" in str(refused.exception)
        assert json.loads(out.read_text())["runs"] == begun
    done = CliRunner().invoke(train.command, options)
    assert done.exit_code in (0, 1), done.output
    told = json.loads(out.read_text())
    assert told["images"] == {"anna": 12, "ben": 6}
    assert set(told["results"]) == {"ours, blocks", "ours, last layer", "notebook"}
    assert told["runs"][:2] == begun
    assert [(run["recipe"], run["unseen"]) for run in told["runs"]] == [
        (recipe, source) for source in ("anna", "ben") for recipe in ("ours, blocks", "ours, last layer", "notebook")
    ]
    of = {name: [run for run in told["runs"] if run["recipe"] == name] for name in told["results"]}
    for name, result in told["results"].items():
        assert result["seconds"] > 0
        assert result["balanced_accuracy"] == pytest.approx(sum(run["balanced_accuracy"] for run in of[name]) / 2)
        ratios = [theirs["seconds"] / own["seconds"] for theirs, own in zip(of["notebook"], of[name], strict=True)]
        assert told["speedup"][name] == pytest.approx(sum(ratios) / 2)
    done = CliRunner().invoke(train.command, [*options, "--unseen", "ben", "--repeats", "2"])
    again = json.loads(out.read_text())["runs"]
    assert [(run["unseen"], run["seed"]) for run in again] == [("ben", 1)] * 3 + [("ben", 2)] * 3
    assert again[:3] == told["runs"][3:]
    CliRunner().invoke(train.command, [*options, "--unseen", "ben"])
    anew = json.loads(out.read_text())["runs"]
    assert len(anew) == 3
    assert anew[0]["seconds"] != again[0]["seconds"]


def test_times_are_medians_and_accuracies_means() -> None:
    """And each speedup is of two trainings on the same images."""
    runs = {
        (name, "anna", seed): train.Result(seconds, 1 / seconds, accuracy, 1.0, 1.0)
        for name, seconds_of, accuracy in (("ours", (2.0, 1.0, 4.0), 0.9), (train.NOTEBOOK, (20.0, 30.0, 80.0), 0.8))
        for seed, seconds in enumerate(seconds_of, start=1)
    }
    told = train.compared(runs)
    assert told["speedup"] == {"ours": 20.0, train.NOTEBOOK: 1.0}
    assert told["results"]["ours"]["seconds"] == 2.0
    assert told["results"]["ours"]["balanced_accuracy"] == pytest.approx(0.9)
