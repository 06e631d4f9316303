"""The model card: true, short enough for MLflow, and never broken by what others called their rooms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dvc")  # the platform's extra

from pipelines.model_card import MOST_CHARACTERS, Evidence, read_evidence, write_card
from serving.contracts.releases import Decision, ExportReport
from serving.errors import OperatorError
from training.dataset import Row

REPORT = ExportReport(
    onnx_sha256="a" * 64,
    onnx_bytes=6_100_000,
    opset=13,
    preprocessing="p",
    backbone="mobilenet_v3_small",
    parity_max_abs=0.0,
    golden_sha256="0" * 64,
    golden_count=1,
    decision=Decision(blocked_threshold=0.431, temperature=1.2),
)
METRICS = {
    "test/balanced_accuracy": 0.912,
    "test/balanced_accuracy_low": 0.871,
    "test/balanced_accuracy_high": 0.943,
    "test/blocked_recall": 0.951,
    "test/blocked_recall_low": 0.889,
    "test/blocked_recall_high": 0.99,
    "test/roc_auc": 0.97,
    "test/images": 164.0,
    "test/groups": 90.0,
    "validation/blocked_recall": 0.93,
}
TAGS = {"lineage.git_commit": "abc123", "lineage.git_dirty": "false", "lineage.data": '{"data/sessions": "1a2b.dir"}'}


def run(metrics: dict[str, float] = METRICS, **tags: str) -> Any:
    data = SimpleNamespace(metrics=metrics, params={"weights": "none", "resolution": "112"}, tags={**TAGS, **tags})
    return SimpleNamespace(info=SimpleNamespace(run_id="run-1"), data=data)


def rows(part: str, **sources: int) -> list[Row]:
    return [Row("s/i.jpg", "free", "s", source, "0", part) for source, count in sources.items() for _ in range(count)]


SPLIT = {"train": rows("train", kitchen=30, hall=10), "validation": rows("validation", hall=5)}
LINES = [
    {
        "source": "kitchen",
        "balanced_accuracy": "0.95",
        "balanced_accuracy_low": "0.9",
        "balanced_accuracy_high": "0.98",
    },
    {"source": "hall", "balanced_accuracy": "0.71", "blocked_recall": ""},
]
EVIDENCE = Evidence({**SPLIT, "test": rows("test", kitchen=8, hall=4)}, LINES)


def test_the_card_tells_what_a_promotion_is_decided_on() -> None:
    """Figures with intervals, threshold, sources with counts, digest, and the way back."""
    card = write_card(run(), REPORT, EVIDENCE)
    assert card.startswith("# collision-avoidance: mobilenet_v3_small, 112 px\n")
    assert (
        "| test part: 164 images, 90 views | 0.912 (0.87 to 0.94) | 0.951 (0.89 to 0.99) | not known | 0.970 |" in card
    )
    assert "from a probability of blocked of **0.431** (temperature 1.20); chosen on the validation part" in card
    assert "the validation part, 93.0% of the blocked found." in card
    assert "| kitchen | 30 | 0 | 8 | 0.950 (0.90 to 0.98) | not known |" in card
    assert "| hall | 10 | 5 | 4 | 0.710 | not known |" in card
    assert "data/sessions `1a2b.dir`" in card
    assert "git checkout abc123\ndvc checkout" in card
    assert "Run `run-1`, ONNX SHA-256 `aaaa" in card


def test_the_limits_are_in_plain_words() -> None:
    """What the lower end of the recall means, where it is weakest, that no place was new, that files were changed."""
    card = write_card(run(**{"lineage.git_dirty": "true"}), REPORT, EVIDENCE)
    assert "Of 100 blocked views it may miss up to 12," in card
    assert "Training has seen every source of the test part" in card
    assert "Weakest at hall: balanced accuracy 0.710." in card
    assert "were not committed" in card


def test_sources_that_were_left_out_come_first() -> None:
    """With them measured, the card gives that figure above the test part's and no longer warns."""
    left_out = {
        "unseen/balanced_accuracy": 0.86,
        "unseen/blocked_recall": 0.92,
        "unseen/images": 837.0,
        "unseen/groups": 400.0,
    }
    card = write_card(run({**METRICS, **left_out}), REPORT, EVIDENCE)
    assert card.index("sources left out of training, mean: 837 images, 400 views | 0.860") < card.index("test part:")
    assert "chosen on sources left out of training, 92.0% of the blocked found." in card
    assert "Training has seen every source" not in card


def test_a_run_without_any_figure_still_has_a_card() -> None:
    """A version may be registered from a run that was never evaluated, or outside of git and DVC."""
    bare = run({}, **{"lineage.git_commit": "unknown", "lineage.data": "{}"})
    card = write_card(bare, REPORT, Evidence({}, []))
    assert "Not measured" in card
    assert "The split is not known." in card
    assert "no DVC hash" in card
    assert "not trained in a git repository" in card


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=30, unique=True))
def test_no_name_breaks_the_card(names: list[str]) -> None:
    """Whatever people called their rooms: tables keep their columns, and MLflow's database takes the text."""
    split = {"train": [Row("s/i.jpg", "free", "s", name, "0", "train") for name in names]}
    lines = [{"source": name, "balanced_accuracy": "0.5", "blocked_recall": "0.5"} for name in names]
    card = write_card(run(), REPORT, Evidence(split, lines))
    assert len(card) < MOST_CHARACTERS
    assert card.endswith(f"`{REPORT.onnx_sha256}`.")  # nothing was cut off
    table = card[card.index("| source |") : card.index("DVC's hashes")].strip().splitlines()
    assert {line.count("|") for line in table} == {7}
    assert len(table) == 2 + min(len(names), 10) + (len(names) > 10)


def test_what_is_missing_in_build_is_named(tmp_path: Path) -> None:
    """One line that says which stage to run."""
    with pytest.raises(OperatorError, match=r"sources.csv cannot be read .* run `dvc repro evaluate` first"):
        read_evidence(tmp_path)
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate/sources.csv").write_text("source,balanced_accuracy\nme,0.5\n")
    with pytest.raises(OperatorError, match="run `dvc repro split` first"):
        read_evidence(tmp_path)
    (tmp_path / "split").mkdir()
    (tmp_path / "split/split.csv").write_text(
        "image,label,session,source,group,part,simulated\ns/i.jpg,free,s,me,0,test,False\n"
    )
    found = read_evidence(tmp_path)
    assert found.split["test"][0].source == "me"
    assert found.sources == [{"source": "me", "balanced_accuracy": "0.5"}]
