"""Gates against the champion, on data and lineage, and on size and memory of engines."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.comparison import Champion, champion_gates
from serving.contracts.releases import Measured
from tests.release_desk import TARGET, limits

ASKED = limits(max_recall_loss=0.0, max_accuracy_loss=0.05)
SHARE = st.floats(0, 1)


def metrics(recall: float, high: float, accuracy: float = 0.9, folder: str = "test") -> dict[str, float]:
    return {
        f"{folder}/blocked_recall": recall,
        f"{folder}/blocked_recall_high": high,
        f"{folder}/balanced_accuracy": accuracy,
        f"{folder}/balanced_accuracy_high": accuracy,
    }


@given(recall=SHARE, width=SHARE, before=SHARE, margin=SHARE)
@settings(max_examples=60, deadline=None)
def test_what_may_be_as_good_as_the_champion_passes(recall: float, width: float, before: float, margin: float) -> None:
    """Exactly where the upper end of the interval reaches the champion's value less the margin."""
    high = min(1.0, recall + width)
    asked = limits(max_recall_loss=margin)
    (gate,) = champion_gates(metrics(recall, high), Champion("3", metrics(before, 1.0)), asked)
    assert gate.passed == (high >= max(0.0, before - margin))
    assert "worse than" in gate.detail
    assert ("not shown" in gate.detail) == gate.passed


def test_blocked_recall_comes_first_and_the_refusal_is_a_sentence() -> None:
    """What a person reads first is what robots would hit."""
    found = champion_gates(metrics(0.80, 0.88), Champion("3", metrics(0.95, 0.99)), ASKED)
    assert [gate.name for gate in found] == ["blocked_recall_against_champion", "balanced_accuracy_against_champion"]
    assert gates.failures(found) == (
        "blocked_recall_against_champion: 0.8 (at 95 % up to 0.88) is worse than the champion, version 3, with 0.95"
    )


def test_sources_left_out_count_where_both_have_them() -> None:
    """The stage unseen may be switched off; where both ran it, it is a gate of its own."""
    both = metrics(0.9, 1.0) | metrics(0.5, 0.6, folder="unseen")
    champion = metrics(0.9, 1.0) | metrics(0.9, 1.0, folder="unseen")
    assert "unseen_blocked_recall_against_champion" in gates.failures(
        champion_gates(both, Champion("3", champion), ASKED)
    )
    assert gates.failures(champion_gates(metrics(0.9, 1.0), Champion("3", champion), ASKED)) == ""


@pytest.mark.parametrize(
    ("champion", "asked", "says"),
    [
        (None, ASKED, ""),
        (Champion("3", metrics(0.9, 1.0)), limits(), ""),
        (Champion("3", None), ASKED, "the run of the champion, version 3, is not in MLflow"),
        (Champion("3", {}), ASKED, "has None"),
        (Champion("3", metrics(float("nan"), 1.0)), ASKED, "has nan"),
    ],
)
def test_without_a_champion_nothing_is_asked_and_without_its_numbers_nothing_passes(
    champion: Champion | None, asked: GateParams, says: str
) -> None:
    """The first version has none to be compared with; one whose figures are lost is no reason to pass."""
    found = gates.failures(champion_gates(metrics(0.9, 1.0), champion, asked))
    assert (found == "") if not says else (says in found)


def test_an_interval_that_was_not_logged_fails() -> None:
    """A run of an older evaluate has to be measured again."""
    found = champion_gates({"test/blocked_recall": 0.9}, Champion("3", metrics(0.9, 1.0)), ASKED)
    assert "no metric test/blocked_recall_high: run `dvc repro evaluate`" in gates.failures(found)


CLEAN = {
    "lineage.git_commit": "a" * 40,
    "lineage.git_dirty": "false",
    "lineage.data": json.dumps({"data/sessions": "d41d.dir"}),
    "validate.passed": "true",
    "validate.errors": "0",
    "validate.warnings": "2",
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, ""),
        ({"lineage.git_dirty": "true"}, "changes that are in no commit"),
        ({"lineage.git_commit": "unknown"}, "outside of a git commit"),
        ({"lineage.data": "{}"}, "no DVC hash"),
        ({"lineage.data": "{broken"}, "no DVC hash"),
        ({"lineage.data": '{"data/sessions": ""}'}, "no DVC hash"),
        ({"lineage.data": '["data/sessions"]'}, "no DVC hash"),
        ({"validate.passed": "false", "validate.errors": "3"}, "3 errors, 2 warnings"),
        ({"validate.passed": "true", "validate.errors": "3"}, "3 errors"),
        ({"validate.passed": ""}, "nothing is known of the checks"),
        ({"validate.errors": "none"}, "nothing is known of the checks"),
    ],
)
def test_data_and_lineage_are_asked_for(changed: dict[str, str], says: str) -> None:
    """A clean commit, data that DVC knows, checks without errors; each lack is named with what to do."""
    asked = limits(require_lineage=True, require_data_checks=True)
    found = gates.failures(gates.origin_gates(CLEAN | changed, asked))
    assert (found == "") if not says else (says in found)
    assert gates.origin_gates(CLEAN | changed, limits()) == []


def test_size_and_memory_have_limits_per_target() -> None:
    """Asked only where params.yaml names the target; what was not measured does not pass."""
    measured = Measured(parity_max_abs=0.0, latency_p50_ms=1.0, latency_p99_ms=1.0, machine="test")
    asked = limits(max_engine_mb={TARGET: 1.0}, max_memory_mb={TARGET: 100.0})

    def failed(engine_bytes: int, memory_mb: float | None) -> str:
        return gates.failures(gates.engine_gates(measured, TARGET, asked, engine_bytes, memory_mb))

    assert failed(1_000_000, 100.0) == ""
    assert failed(1_000_001, 100.0) == f"size.{TARGET}: 1 > 1 MB"
    assert failed(1, 100.5) == f"memory.{TARGET}: 100.5 > 100 MB at the peak"
    assert "not measured" in failed(1, None)
    assert len(gates.engine_gates(measured, TARGET, limits(), 10**12, None)) == 2


def test_limits_read_as_one_text() -> None:
    """The same limits are the same text; another limit, target or decision is another."""
    one = gates.as_text(limits(max_engine_mb={TARGET: 1.0, "cpu-ort-int8": 2.0}), [TARGET])
    assert one == gates.as_text(limits(max_engine_mb={"cpu-ort-int8": 3.0, TARGET: 1.0}), [TARGET])
    assert one != gates.as_text(limits(max_engine_mb={TARGET: 1.5}), [TARGET])
    assert one != gates.as_text(limits(max_engine_mb={TARGET: 1.0}, max_recall_loss=0.1), [TARGET])
