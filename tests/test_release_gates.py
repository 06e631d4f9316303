"""Gates, the builder's measurements, and the step that a channel needs."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.build import Golden, build_ort_fp32, builder_of
from pipelines.release.journal import Attempt, State
from pipelines.release.registry import Version, with_block
from pipelines.release.service import Step, decide
from serving.contracts.releases import Channel, Measured, release_id
from serving.errors import OperatorError, RejectedError
from tests.simulators.promotions import tiny_golden, tiny_onnx

TARGET = "cpu-ort-fp32"
LIMITS = GateParams(
    min_balanced_accuracy=0.8, min_blocked_recall=0.85, max_parity_error=0.01, max_latency_ms={TARGET: 30.0}
)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


def measured(parity: float = 0.0, p99_ms: float = 1.0) -> Measured:
    return Measured(parity_max_abs=parity, latency_p50_ms=1.0, latency_p99_ms=p99_ms, machine="test")


@given(accuracy=ANY_FLOAT, recall=ANY_FLOAT)
@settings(max_examples=60, deadline=None)
def test_accuracy_gates_pass_exactly_within_limits(accuracy: float, recall: float) -> None:
    """A share passes from its limit up to 1; NaN, infinity and anything outside 0..1 fail, whatever the order."""
    results = gates.accuracy_gates({gates.ACCURACY_METRIC: accuracy, gates.RECALL_METRIC: recall}, LIMITS)
    assert [gate.passed for gate in results] == [0.8 <= accuracy <= 1, 0.85 <= recall <= 1]
    assert all(gate.value is None or math.isfinite(gate.value) for gate in results)
    assert bool(gates.failures(results)) == (not all(gate.passed for gate in results))


@given(parity=ANY_FLOAT, latency_ms=ANY_FLOAT)
@settings(max_examples=60, deadline=None)
def test_engine_gates_pass_exactly_within_limits(parity: float, latency_ms: float) -> None:
    """Parity and latency pass from 0 to their limits; NaN, infinity and negative numbers fail."""
    results = gates.engine_gates(measured(parity, latency_ms), TARGET, LIMITS)
    assert [gate.passed for gate in results] == [0 <= parity <= 0.01, 0 <= latency_ms <= 30]


def test_a_gate_without_a_number_fails_and_says_why() -> None:
    """A metric that was never logged and a target without a limit do not pass."""
    missing, recall = gates.accuracy_gates({gates.RECALL_METRIC: 0.9}, LIMITS)
    assert not missing.passed
    assert "no metric test/balanced_accuracy" in gates.failures([missing, recall])
    latency = gates.engine_gates(measured(), "jetson-nano-trt8.2-fp16", LIMITS)[1]
    assert not latency.passed
    assert "no limit" in latency.detail


def test_tags_read_like_sentences() -> None:
    """A person sees in MLflow what was measured against what, and a near miss is not rounded away."""
    metrics = {gates.ACCURACY_METRIC: 0.93, gates.RECALL_METRIC: 0.8499}
    assert gates.as_tags(gates.accuracy_gates(metrics, LIMITS)) == {
        "gate.balanced_accuracy": "pass 0.93 ≥ 0.8",
        "gate.blocked_recall": "fail 0.8499 < 0.85",
    }


def test_the_builder_measures_the_engine(tmp_path: Path) -> None:
    """The engine is the ONNX file; parity is the golden frames' error, latency is positive and ordered."""
    tiny_golden(tmp_path / "golden.npz", off_by=0.25)
    built = builder_of(TARGET)(tiny_onnx(), Golden.read(tmp_path / "golden.npz"))
    assert built.engine == tiny_onnx()
    assert built.measured.parity_max_abs == pytest.approx(0.25, abs=1e-3)
    assert 0 < built.measured.latency_p50_ms <= built.measured.latency_p99_ms


@pytest.mark.parametrize("onnx", [b"", b"no network", tiny_onnx(input_name="image"), tiny_onnx()[:-30]])
def test_what_is_no_network_is_rejected_in_one_line(onnx: bytes, tmp_path: Path) -> None:
    """Garbage, a cut file and another input name are the author's fault, said in one line."""
    tiny_golden(tmp_path / "golden.npz")
    with pytest.raises(RejectedError) as refusal:
        build_ort_fp32(onnx, Golden.read(tmp_path / "golden.npz"))
    assert "\n" not in str(refusal.value)


def test_malformed_golden_frames_are_rejected(tmp_path: Path) -> None:
    """Not an archive, a missing array, other shapes, NaN: rejected before anything is built."""
    frames = np.zeros((2, 224, 224, 3), np.uint8)
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK no archive")
    with pytest.raises(RejectedError):
        Golden.read(bad)
    for arrays in (
        {"frames": frames},
        {"frames": frames[:0], "logits": np.zeros((0, 2), np.float32)},
        {"frames": frames[:, :8], "logits": np.zeros((2, 2), np.float32)},
        {"frames": frames, "logits": np.zeros((3, 2), np.float32)},
        {"frames": frames, "logits": np.full((2, 2), np.nan, np.float32)},
    ):
        np.savez(bad, **arrays)
        with pytest.raises(RejectedError):
            Golden.read(bad)


def test_a_target_without_builder_names_those_there_are() -> None:
    """The operator learns where the targets are listed."""
    with pytest.raises(OperatorError, match="release targets"):
        builder_of("toaster-trt8.2-fp16")


def version(number: str = "2", **tags: str) -> Version:
    lineage = {"lineage.onnx_sha256": "ab" * 32}
    return Version(number, "run", lineage | {key.replace("_", "."): value for key, value in tags.items()}, "")


def running(number: str, targets: tuple[str, ...] = (TARGET,)) -> Channel:
    release = release_id(number, "ab" * 32)
    paths = {target: f"releases/{release}/{target}/passport.json" for target in targets}
    return Channel(
        channel="champion", sequence=1, release_id=release, model_version=number, passports=paths, issued_at=""
    )


def attempt(state: str, limits: str = "now", change: int = 1) -> Attempt:
    return Attempt(
        id=1,
        channel="champion",
        version="2",
        release_id="",
        onnx_sha256="",
        targets=[],
        limits=limits,
        change_id=change,
        state=State(state),
        reason="",
        gates=[],
        overrides=[],
        sequence=None,
        told=True,
        begun_at="",
        changed_at="",
    )


DONE = version(release_status="released")
REFUSED = version(release_status="refused")


@pytest.mark.parametrize(
    ("version", "channel", "published", "last", "step"),
    [
        (version(), None, [], None, Step.BEGIN),
        (version(), running("1"), [], None, Step.BEGIN),
        *[
            (version(release_status="pending"), running("1"), [], attempt(state), Step.RESUME)
            for state in ("pending", "gated", "compiled", "verified", "signed")
        ],
        (DONE, running("2"), [TARGET], attempt("released"), Step.NOTHING),
        (DONE, running("2"), [TARGET], None, Step.NOTHING),
        (version(release_status="rolled-back"), running("2"), [TARGET], attempt("released"), Step.NOTHING),
        (version(), running("2"), [TARGET], attempt("released"), Step.TELL),
        (version(release_status="pending"), running("2"), [TARGET], None, Step.TELL),
        (DONE, running("3"), [TARGET], attempt("released", change=0), Step.BEGIN),
        (DONE, None, [TARGET], attempt("released"), Step.BEGIN),
        (DONE, running("2", ()), [TARGET], None, Step.BEGIN),
        (REFUSED, running("1"), [], attempt("refused"), Step.NOTHING),
        (REFUSED, running("1"), [], attempt("refused", limits="before"), Step.BEGIN),
        (REFUSED, running("1"), [], attempt("refused", change=0), Step.BEGIN),
        (version(), running("1"), [], attempt("refused"), Step.BEGIN),
        (version(release_status="superseded"), running("1"), [], attempt("superseded"), Step.BEGIN),
        (DONE, running("1"), [TARGET], attempt("withdrawn"), Step.NOTHING),
        (DONE, running("1"), [TARGET], attempt("withdrawn", change=0), Step.BEGIN),
    ],
)
def test_each_situation_has_one_step(
    version: Version, channel: Channel | None, published: list[str], last: Attempt | None, step: Step
) -> None:
    """Wherever the service was stopped, what is wanted, published and noted tell what is missing."""
    assert decide(version, channel, published, [TARGET], last, "now", 1) is step


def test_a_new_target_is_built_for_a_running_release() -> None:
    """A release that lacks a target the service is to serve is built for it."""
    assert decide(DONE, running("2"), [TARGET], [TARGET, "other"], attempt("released"), "now", 1) is Step.BEGIN


@given(human=st.text(max_size=80), first=st.text(max_size=40), second=st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_what_people_wrote_in_a_description_stays(human: str, first: str, second: str) -> None:
    """Our block is replaced, not repeated, and stands after what was there."""
    once = with_block(human, first.replace("<", ""))
    twice = with_block(once, second.replace("<", ""))
    assert twice == with_block(human, second.replace("<", ""))
    assert twice.startswith(human.strip())
