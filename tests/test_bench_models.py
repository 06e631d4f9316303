"""The benchmarks of images and gate, on a handful of images and rooms: their figures are what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from simulator.scores import Limits, figures
from simulator.suite import Counts
from tests.bench import frozen, gate, gate_models, looks_real
from tests.bench.real_sets import rows_of, simulate
from tests.bench_sets import data, weights  # noqa: F401
from training.dataset import Images
from training.fit import fit
from training.inference import infer
from training.settings import TrainSettings


def test_a_frozen_head_is_the_projects_own(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On features kept from before, training.fit makes the very network that it makes of the images."""
    monkeypatch.setattr(frozen, "CACHE", tmp_path / "cache")
    rows, pixels = simulate(1, 8)
    labels = np.array([row.label == "free" for row in rows], dtype=np.int64)
    settings = frozen.settings_of(weights, 112, 3, 0.002, "head")
    features = frozen.features_of(pixels, settings)
    made = frozen.train_head(rows, features, labels, settings, 1)
    own = frozen._pretrained(settings)
    torch.manual_seed(1)
    frozen.replace_layer(own.backbone, "classifier.3", torch.nn.Linear(1024, 2))
    fitted = fit(own, settings, Images(rows, pixels, labels), None).network
    assert np.allclose(infer(fitted, pixels), frozen.logits_of(made, features), atol=1e-4)
    assert np.allclose(infer(frozen.whole(made, settings), pixels), frozen.logits_of(made, features), atol=1e-4)
    assert np.array_equal(frozen.features_of(pixels, settings), features)  # out of the cache


def test_looks_real_judges_each_set_without_its_source(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command writes three ways of training for each set; no way has seen an image of the judged source."""
    monkeypatch.setattr(frozen, "CACHE", tmp_path)
    options = ["--data", str(data), "--weights", str(weights), "--rooms", "2", "--images", "4", "--repeats", "1"]
    options += ["--resolution", "112", "--epochs", "1", "--out", str(tmp_path / "looks.json")]
    done = CliRunner().invoke(looks_real.command, options)
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "looks.json").read_text())
    assert set(told["sets"]) == {"anna_hall", "anna_loft", "ben_den"}
    assert all(set(ways) == set(looks_real.WAYS) for ways in told["sets"].values())
    every = looks_real.gather(data, 1, 4, TrainSettings(backbone="mobilenet_v3_small", weights=str(weights)))
    seen: list[tuple[set[str], set[str]]] = []

    def train(learned: looks_real.Data, judged: looks_real.Data, seed: int) -> np.ndarray:
        seen.append(({row.source for row in learned.rows}, {row.source for row in judged.rows}))
        return np.zeros((len(judged.rows), 2), np.float32)

    looks_real.judge(every, train, 1)
    assert [learned for learned, _ in seen[:3]] == [{"arena"}, {"ben"}, {"ben", "arena"}]
    assert all(not learned & judged for learned, judged in seen)


def test_the_gate_is_measured(data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of more and less data are trained, driven and judged; a second run drives nothing again."""
    monkeypatch.setattr(frozen, "CACHE", tmp_path)
    monkeypatch.setattr(gate, "KEPT", tmp_path / "gate")
    options = ["--data", str(data), "--weights", str(weights), "--models", "2", "--rooms", "2", "--seconds", "5"]
    options += ["--starts", "1", "--simulated-rooms", "2", "--processes", "1"]
    for _ in range(2):
        done = CliRunner().invoke(gate.command, [*options, "--out", str(tmp_path / "gate.json")])
        assert done.exit_code in (0, 1), done.output
        monkeypatch.setattr(gate_models, "run_suite", None)
    told = json.loads((tmp_path / "gate.json").read_text())
    assert [one["images"] for one in told["models"]] == [12, 50]
    assert all(0.5 <= one["until_sure"]["same_verdict"] <= 1 for one in told["models"])
    assert len(list((tmp_path / "gate").glob("*.csv"))) == 2


def test_subsets_are_nested(data: Path) -> None:
    """More data is the same data and more of it, with every class of every source in it."""
    every = looks_real.Data([*simulate(2, 10)[0]], np.zeros(20), np.zeros(20))
    less, more = gate_models.subset(every, 0.3), gate_models.subset(every, 0.6)
    assert (less.sum(), more.sum()) == (6, 12)
    assert not (less & ~more).any()
    few, many = gate_models.spoilt(every, 0.2) != 0, gate_models.spoilt(every, 0.5) != 0
    assert few.sum() < many.sum() < 20
    assert not (few & ~many).any()
    assert rows_of([]) == []


def test_a_verdict_is_steady_away_from_the_limit() -> None:
    """A model that hits little always passes, one that hits all the time never; one near the limit changes less where
    it is driven until it is sure.
    """
    limits, rng = Limits(20.0, 2.0), np.random.default_rng(0)

    def of(rate: float, looks: tuple[int, ...]) -> dict[str, float]:
        rooms = {
            number: Counts(seconds=60, distance_m=8, collisions=int(rng.poisson(rate)), frames=1200)
            for number in range(100)
        }
        return gate.stability(rooms, looks, limits, 50)

    good = of(0.2, (10, 20, 40, 80))
    assert (good["passes"], good["same_verdict"], good["unsure"]) == (1.0, 1.0, 0.0)
    assert good["rooms"] < 15
    assert of(4.0, (10, 20, 40, 80))["passes"] == 0.0
    near, driven_on = of(0.9, (10,)), of(0.9, (10, 20, 40, 80))
    assert near["same_verdict"] < 0.9 < driven_on["same_verdict"]
    assert 10 < driven_on["rooms"] < 80


def test_what_stands_still_is_behind_all_that_drive() -> None:
    """The upper end of the collisions is an order of few collisions and of way; the plain figure is of collisions."""
    kinds = [(0, 0.5), (9, 60.0), (1, 60.0), (0, 60.0)]
    found = [
        {
            **dict.fromkeys(gate.ACCURACIES, 0.1 * place),
            **figures({1: Counts(600, way / 2, hits, 1), 2: Counts(600, way / 2, 0, 1)}),
        }
        for place, (hits, way) in enumerate(kinds)
    ]
    told = gate.correlations(found)["balanced_accuracy"]
    assert told["collisions_per_100m_high"] == pytest.approx(-1.0)
    assert told[gate.JUDGED] > -0.7
    assert "missed_share" not in told
