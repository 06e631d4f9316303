"""From counts to figures with intervals, and the gates that judge them."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.promise import promised
from pipelines.simulate import EXPECTED
from serving.contracts.releases import Measured
from simulator.scores import Limits, differences, figures, promise, totals, undecided
from simulator.settings import SuiteSettings
from simulator.suite import Counts, Episode

NOWHERE = np.empty((0, 2), np.float32)
LIMITS = GateParams(
    min_balanced_accuracy=0.8,
    min_blocked_recall=0.8,
    max_parity_error=0.01,
    max_latency_ms={},
    max_collisions_per_100m=20.0,
    min_distance_m_per_min=2.0,
)
ROOM = Counts(
    seconds=60.0, distance_m=8.0, collisions=1, frames=1200, stuck=60, free=600, false_stops=30, blocked=200, missed=20
)


def rooms(count: int, seed: int = 0, collisions: float = 1.0) -> dict[int, Counts]:
    rng = np.random.default_rng(seed)
    return {
        number: ROOM._replace(
            collisions=int(rng.poisson(collisions)),
            distance_m=float(rng.uniform(6, 10)),
            stuck=int(rng.integers(0, 200)),
            missed=int(rng.integers(0, 50)),
            false_stops=int(rng.integers(0, 100)),
        )
        for number in range(count)
    }


def test_the_figures_are_ratios_of_sums() -> None:
    """Two episodes of a room are one room; a hundred metres are counted over all rooms, not averaged per room."""
    episodes = [
        Episode(7, 0, ROOM, NOWHERE, NOWHERE),
        Episode(7, 1, ROOM._replace(collisions=0, distance_m=4.0), NOWHERE, NOWHERE),
        Episode(8, 0, ROOM._replace(distance_m=0.0, collisions=0), NOWHERE, NOWHERE),
    ]
    counted = totals(reversed(episodes))
    assert list(counted) == [7, 8]
    assert counted[7].distance_m == 12.0
    found = figures(counted)
    assert found["collisions_per_100m"] == pytest.approx(100 / 12)
    assert found["distance_m_per_min"] == pytest.approx(4.0)
    assert found["stuck_share"] == pytest.approx(0.05)
    assert found["false_stop_share"] == pytest.approx(0.05)
    assert found["missed_share"] == pytest.approx(0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 suites of 20 rooms at a known rate, about 95 % of the intervals hold it; the same suite gives the same."""
    truth = 100 * 1.0 / 8.0
    held = 0
    for seed in range(200):
        found = figures(rooms(20, seed))
        held += found["collisions_per_100m_low"] <= truth <= found["collisions_per_100m_high"]
    assert held >= 0.85 * 200
    assert figures(rooms(20)) == figures(rooms(20))


def test_the_upper_end_holds_in_rooms_that_are_unlike() -> None:
    """Ten rooms, some of them four times as hard as others: the truth is above the upper end as seldom as it says."""
    rng, missed = np.random.default_rng(3), 0
    for _ in range(400):
        drawn = {
            number: ROOM._replace(
                collisions=int(rng.poisson(rng.gamma(2.0, 0.5))), distance_m=float(rng.uniform(6, 10))
            )
            for number in range(10)
        }
        missed += figures(drawn)["collisions_per_100m_high"] < 100 * 1.0 / 8.0
    assert missed <= 0.05 * 400  # 0.025, and three standard errors


def test_driving_on_while_in_doubt_does_not_flatter() -> None:
    """A network at the very limit, looked at up to four times, passes in as few suites as one look's level says."""
    limits, looks = Limits(12.5), SuiteSettings(rooms=10, max_rooms=80).looks
    assert looks == (10, 20, 40, 80)
    passed = {1: 0, len(looks): 0}
    for corrected in passed:
        for seed in range(200):
            every = rooms(looks[-1], seed)
            for count in looks:
                found = figures({number: every[number] for number in range(count)}, looks=corrected)
                if not undecided(found, limits):
                    break
            passed[corrected] += found["collisions_per_100m_high"] <= 12.5
    assert passed[len(looks)] <= 0.05 * 200  # 0.025, and two standard errors
    assert passed[1] > passed[len(looks)]  # what four looks at full level would cost


def test_more_rooms_are_asked_for_only_where_they_may_tell() -> None:
    """Sure to pass, sure to be refused by either limit, or standing still: no more rooms. Otherwise more."""
    good, bad = figures(rooms(40, collisions=0.2)), figures(rooms(40, collisions=4.0))
    limits = Limits(20.0, 2.0)
    assert not undecided(good, limits)
    assert not undecided(bad, limits)
    assert undecided(figures(rooms(3, collisions=1.5)), limits)
    assert not undecided(figures(rooms(3, collisions=1.5)), Limits(20.0, 30.0))  # far too slow, whatever it hits
    assert undecided(good, Limits(20.0, good["distance_m_per_min"]))
    assert not undecided(figures({seed: ROOM._replace(distance_m=0.0, collisions=0) for seed in range(4)}), limits)
    assert not undecided(figures(rooms(3, collisions=1.5)), Limits())


def test_a_refusal_for_doubt_says_so() -> None:
    """In words, with the rooms that were driven; a plain refusal does not."""
    doubtful, bad = figures(rooms(4, collisions=1.2)), figures(rooms(40, collisions=4.0))
    told = gates.failures(gates.driving_gates({**logged(doubtful), gates.ROOMS_METRIC: 4}, LIMITS))
    assert "not decided after 4 rooms" in told
    assert "in doubt no" in told
    plain = gates.failures(gates.driving_gates({**logged(bad), gates.ROOMS_METRIC: 40}, LIMITS))
    assert "collisions" in plain
    assert "decided" not in plain
    slow = {gates.DISTANCE_METRIC: 2.1, f"{gates.DISTANCE_METRIC}_low": 1.8, f"{gates.DISTANCE_METRIC}_high": 2.4}
    far = gates.driving_gates({**logged(figures(rooms(40))), **slow, gates.ROOMS_METRIC: 80}, LIMITS)[0]
    assert not far.passed
    assert far.detail == "1.8 < 2 m a minute: not decided after 80 rooms (1.8 to 2.4), and in doubt no"


def test_no_collision_is_no_certainty() -> None:
    """Without one collision the upper end falls with the metres driven, and is not zero."""
    few, many = figures(rooms(3, collisions=0.0)), figures(rooms(30, collisions=0.0))
    assert few["collisions_per_100m"] == few["collisions_per_100m_low"] == 0.0
    assert 4 * many["collisions_per_100m_high"] < few["collisions_per_100m_high"] < 30


def test_a_pair_is_told_apart_more_surely_than_two_alone() -> None:
    """Difficult rooms are difficult for both: the interval of the difference is narrower than the two intervals."""
    one = rooms(20)
    worse = {seed: counts._replace(collisions=counts.collisions + 1) for seed, counts in one.items()}
    above = differences(worse, one)
    assert above["collisions_per_100m_low"] > 0
    alone = figures(one)
    width = above["collisions_per_100m_high"] - above["collisions_per_100m_low"]
    assert width < alone["collisions_per_100m_high"] - alone["collisions_per_100m_low"]
    assert differences(one, one)["distance_m_per_min"] == 0.0
    with pytest.raises(ValueError, match="same rooms"):
        differences(one, rooms(19))


def test_a_robot_that_never_moves_has_figures_and_is_refused_with_the_reason() -> None:
    """Nothing driven: no rate of collisions, a distance of zero, and a gate that says so."""
    standing = {seed: ROOM._replace(distance_m=0.0, collisions=0, blocked=0, missed=0) for seed in range(4)}
    found = figures(standing)
    assert found["distance_m_per_min"] == 0.0
    assert math.isnan(found["collisions_per_100m"])
    assert math.isnan(found["missed_share"])
    judged = gates.driving_gates(logged(found), LIMITS)
    assert [gate.passed for gate in judged] == [False, False]
    assert "0 < 2 m a minute" in gates.failures(judged)
    assert "hardly drove" in gates.failures(judged)


def logged(found: dict[str, float]) -> dict[str, float]:
    """As the MLflow run holds them: without what is not known."""
    return {f"simulate/{name}": value for name, value in found.items() if math.isfinite(value)}


def test_collisions_are_judged_by_the_upper_end() -> None:
    """A good figure from few rooms does not pass where many rooms would."""
    few, many = figures(rooms(3, collisions=0.8)), figures(rooms(60, collisions=0.8))
    assert many["collisions_per_100m"] < 20
    assert few["collisions_per_100m"] < 20 < few["collisions_per_100m_high"]
    assert not gates.driving_gates(logged(few), LIMITS)[1].passed
    assert gates.failures(gates.driving_gates(logged(many), LIMITS)) == ""


@given(distance=st.floats(), collisions=st.floats())
@settings(max_examples=80, deadline=None)
def test_driving_gates_pass_exactly_within_limits(distance: float, collisions: float) -> None:
    """NaN, infinity and negative numbers fail, whatever the order."""
    metrics = {gates.DISTANCE_METRIC: distance, gates.COLLISIONS_METRIC: collisions}
    judged = gates.driving_gates(metrics, LIMITS)
    assert [gate.passed for gate in judged] == [2 <= distance < math.inf, 0 <= collisions <= 20]


def test_without_limits_nothing_is_asked_and_without_the_stage_nothing_passes() -> None:
    """Limits are what asks; a run from before the stage is refused with the command that mends it."""
    silent = GateParams(min_balanced_accuracy=0.8, min_blocked_recall=0.8, max_parity_error=0.01, max_latency_ms={})
    assert gates.driving_gates({}, silent) == []
    judged = gates.driving_gates({}, LIMITS)
    assert not any(gate.passed for gate in judged)
    assert gates.failures(judged).count("dvc repro simulate") == 2


def test_the_model_card_tells_how_it_drove() -> None:
    """A person who is about to promote it reads collisions with their interval; without the stage, nothing is said."""
    from pipelines.model_card import Evidence, write_card
    from tests.test_model_card import REPORT, run

    told = write_card(run({"test/balanced_accuracy": 0.9, **logged(figures(rooms(20)))}), REPORT, Evidence({}, []))
    assert "collisions per 100 m" in told
    assert " m a minute" in told
    assert "collisions" not in write_card(run(), REPORT, Evidence({}, []))


def test_a_promise_holds_for_another_room() -> None:
    """The promise of ten rooms holds what the next one does in nearly every suite, and says something."""
    rng, held, width = np.random.default_rng(1), 0, 0.0
    for _ in range(200):
        drawn = {
            number: ROOM._replace(turning=int(rng.normal(400, 60)), spins=int(rng.poisson(1))) for number in range(11)
        }
        last = drawn.pop(10)
        found = promise(drawn)
        held += found["blocked_rate_low"] <= last.turning / last.frames <= found["blocked_rate_high"]
        width += (found["blocked_rate_high"] - found["blocked_rate_low"]) / 200
        assert found["spins_per_min_high"] > 1
    assert held >= 199
    assert width < 0.7
    assert promise(rooms(4)) == {}


def test_the_passport_promises_what_was_driven() -> None:
    """Metrics of the run and the builder's latency become the passport's promise; without the metrics there is none."""
    measured = Measured(parity_max_abs=0, latency_p50_ms=2, latency_p99_ms=3, machine="here")
    metrics = {f"{EXPECTED}{name}": value for name, value in promise(rooms(10)).items()}
    made = promised({"simulate/blocked_rate": 0.3, **metrics}, measured)
    assert made is not msgspec.UNSET
    assert (made.latency_p99_ms, made.blocked_rate_low) == (3, 0.0)
    assert promised({"simulate/blocked_rate": 0.3}, measured) is msgspec.UNSET
    assert promised({**metrics, f"{EXPECTED}blocked_rate_high": math.nan}, measured) is msgspec.UNSET
