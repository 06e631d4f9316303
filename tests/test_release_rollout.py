"""The rules of a rollout: which robots take a release, how it goes on, and what the reports say. Pure."""

import dataclasses
import datetime
import math

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.params import RolloutParams, load
from pipelines.release import rollout
from pipelines.release.rollout_health import Outcome, Verdict, judge, ratio_at_least, wilson
from serving.contracts.releases import Channel, ReleaseRef, Rollout, rollout_place
from serving.errors import RejectedError
from serving.rollout import choose
from telemetry.health import Seen
from tests.conftest import ROOT
from tests.test_link_parts import channel_of

NOW = "2026-11-23T12:00:00Z"
PARAMS = RolloutParams(step_min_s=600, min_robots=2, min_decisions=1000)
HEALTHY = Verdict(Outcome.HEALTHY, "fine")
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z")
shares = st.floats(0, 1, allow_nan=False)


def ref(version: int) -> ReleaseRef:
    channel = channel_of(version, 1)
    return ReleaseRef(release_id=channel.release_id, model_version=channel.model_version, passports=channel.passports)


def rolling(version: int = 2, share: float = 0.1, sequence: int = 2, **changes: object) -> Channel:
    """Version 2 on its way, version 1 before it."""
    rules = {"previous": ref(1), **changes}
    withdrawn = rules.pop("withdrawn", [])
    how = Rollout(share=share, **rules)  # type: ignore[arg-type]
    return msgspec.structs.replace(channel_of(version, sequence), schema=2, rollout=how, withdrawn=withdrawn)


def fleet(count: int = 10, **changes: object) -> list[Seen]:
    """Robots that drove an hour each, one window of metrics every 10 s."""
    usual: dict[str, object] = {"driven_s": 3600.0, "windows": 360, "decisions": 36_000, "blocked": 0.3}
    return [Seen("lab", f"r{n}", **{**usual, "latency_p99_ms": 20.0, **changes}) for n in range(count)]  # type: ignore[arg-type]


# The contract


def test_old_channel_files_are_still_read_and_new_ones_without_a_rollout_look_the_same() -> None:
    """A file of schema 1 reads as for all robots; without rollout and withdrawals none of their keys is written."""
    old = (
        b'{"schema":1,"channel":"champion","sequence":1,"release_id":"a",'
        b'"model_version":"1","passports":{},"issued_at":"x"}'
    )
    channel = msgspec.json.decode(old, type=Channel)
    assert (channel.rollout, channel.withdrawn) == (None, [])
    assert set(msgspec.json.decode(msgspec.json.encode(channel))) == set(msgspec.json.decode(old)) - {"schema"}
    new = rolling(withdrawn=["x"])
    assert msgspec.json.decode(msgspec.json.encode(new), type=Channel) == new


def test_the_places_of_robots_are_uniform() -> None:
    """Of 20,000 robots each tenth of the way holds a tenth (chi-squared, 9 degrees of freedom, p > 0.001)."""
    count = 20_000
    tenths = [0] * 10
    for number in range(count):
        tenths[int(rollout_place(f"jetbot-{number}", "collision-avoidance-v7-1a2b3c4d") * 10)] += 1
    assert sum((found - count / 10) ** 2 / (count / 10) for found in tenths) < 27.88


def test_the_place_is_what_is_documented() -> None:
    """The first 53 bits of SHA-256 over release/robot: this value must never change, or robots change sides."""
    place = rollout_place("jetbot-1", "collision-avoidance-v7-1a2b3c4d")
    assert place == pytest.approx(0.1896564472239457, abs=1e-15)


def test_another_release_begins_with_other_robots() -> None:
    """Who is first for one release is not first for the next: the places of two releases do not go together."""
    pairs = [(rollout_place(f"r{n}", "a"), rollout_place(f"r{n}", "b")) for n in range(2000)]
    mean = sum((one - 0.5) * (other - 0.5) for one, other in pairs) / len(pairs)
    assert abs(mean * 12) < 0.08  # the correlation


@settings(max_examples=200, deadline=None)
@given(names, shares, shares)
def test_a_growing_share_only_adds_robots(robot: str, one: float, other: float) -> None:
    """Who takes it at a share takes it at every larger one; at 1 all do, at 0 nobody."""
    small, large = sorted((one, other))
    takes = [choose(rolling(share=share), robot, "").cause == "release" for share in (0.0, small, large, 1.0)]
    assert takes == sorted(takes)
    assert (takes[0], takes[-1]) == (False, True)


@settings(max_examples=300, deadline=None)
@given(names, shares, st.booleans(), st.booleans(), st.sets(st.sampled_from([1, 2])), st.sampled_from([0, 1, 2]))
def test_no_robot_is_ever_told_to_run_a_withdrawn_release(
    robot: str, share: float, paused: bool, has_previous: bool, withdrawn: set[int], running: int
) -> None:
    """Whatever the rollout, and whatever it runs now."""
    ids = {version: ref(version).release_id for version in (1, 2)}
    channel = rolling(
        share=share, paused=paused, previous=ref(1) if has_previous else None, withdrawn=[ids[v] for v in withdrawn]
    )
    choice = choose(channel, robot, ids.get(running, ""))
    assert choice.release is None or choice.release.release_id not in channel.withdrawn
    assert choice.why


def test_a_paused_rollout_adds_nobody_and_takes_it_from_nobody() -> None:
    """Who runs it keeps it, also over a restart; who does not runs the one before."""
    paused = rolling(share=1.0, paused=True)
    assert choose(paused, "r", ref(2).release_id).release == ref(2)
    assert choose(paused, "r", ref(1).release_id).release == ref(1)
    assert choose(paused, "r", "").release == ref(1)


# Steps


def test_a_first_release_has_no_rollout_and_the_next_one_begins_small() -> None:
    """Without anything before it all robots take it; then the first share does, and the others are told what to run."""
    first = rollout.begin(channel_of(1, 1), None, PARAMS.steps, "").channel
    assert (first.rollout, first.schema) == (None, 1)
    second = rollout.begin(channel_of(2, 2), first, PARAMS.steps, "")
    assert second.channel.rollout == Rollout(share=0.1, previous=ref(1))
    assert second.status == "rolling"
    at_once = rollout.begin(channel_of(2, 2), first, PARAMS.steps, "no store")
    assert (at_once.channel.rollout, at_once.reason) == (Rollout(share=1.0, previous=ref(1)), "no store")


def test_a_release_that_never_came_to_all_is_not_what_others_go_back_to() -> None:
    """A third release that comes while the second is on its way, or withdrawn, has the first before it."""
    third = channel_of(3, 3)
    for second in (rolling(), rolling(share=1.0, withdrawn=[ref(2).release_id]), rolling(share=1.0, paused=True)):
        begun = rollout.begin(third, second, PARAMS.steps, "").channel
        assert begun.rollout is not None
        assert begun.rollout.previous == ref(1)
        assert begun.withdrawn == second.withdrawn
    whole = rollout.begin(third, rolling(share=1.0), PARAMS.steps, "").channel.rollout
    assert whole is not None
    assert whole.previous == ref(2)


def test_going_back_in_the_middle_of_a_rollout_is_for_all_at_once() -> None:
    """The alias on the release before: there is nothing to try out, every robot ran it."""
    back = rollout.begin(channel_of(1, 3), rolling(), PARAMS.steps, "")
    assert (back.channel.rollout, back.status) == (None, "all")


def test_healthy_steps_lead_to_all_robots_in_time() -> None:
    """Not before step_min_s, then one step each; after the last one there is none."""
    channel = rolling()
    assert rollout.advance(channel, HEALTHY, 599, PARAMS, NOW) is None
    for share in (0.5, 1.0):
        move = rollout.advance(channel, HEALTHY, 600, PARAMS, NOW)
        assert move is not None
        channel = move.channel
        assert channel.rollout is not None
        assert (channel.rollout.share, channel.rollout.previous) == (share, ref(1))
    assert channel.sequence == 4
    assert rollout.advance(channel, HEALTHY, 1e6, PARAMS, NOW) is None
    assert rollout.is_whole(channel)
    assert not rollout.is_whole(rolling())


def test_unhealthy_reports_pause_or_withdraw_at_once() -> None:
    """Also before step_min_s; a withdrawal needs a release to go back to, else it is paused."""
    bad = Verdict(Outcome.UNHEALTHY, "crashes", withdraw=True)
    withdrawn = rollout.advance(rolling(), bad, 1, PARAMS, NOW)
    assert withdrawn is not None
    assert (withdrawn.status, withdrawn.channel.withdrawn) == ("withdrawn", [ref(2).release_id])
    assert withdrawn.channel.schema == 2
    for channel, verdict in ((rolling(), bad._replace(withdraw=False)), (rolling(previous=None), bad)):
        paused = rollout.advance(channel, verdict, 1, PARAMS, NOW)
        assert paused is not None
        assert (paused.status, paused.channel.withdrawn) == ("paused", [])
    assert rollout.advance(rolling(), Verdict(Outcome.NOT_ENOUGH, ""), 1e9, PARAMS, NOW) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["pause", "resume", "promote", "withdraw", "healthy", "bad"]), max_size=12))
def test_whatever_happens_sequences_rise_and_withdrawn_stays(happenings: list[str]) -> None:
    """Each change is a new signed file; a share never shrinks; what is withdrawn never comes back."""
    channel = rolling()
    for what in happenings:
        before = channel
        try:
            if what == "healthy":
                move = rollout.advance(channel, HEALTHY, 1e6, PARAMS, NOW) if rollout.is_watched(channel) else None
            elif what == "bad":
                bad = Verdict(Outcome.UNHEALTHY, "latency")
                move = rollout.advance(channel, bad, 1, PARAMS, NOW) if rollout.is_watched(channel) else None
            elif what == "withdraw":
                move = rollout.withdraw(channel, channel.release_id, NOW, "by me")
            else:
                move = getattr(rollout, what)(channel, NOW, "by me")
        except RejectedError:
            continue
        if move is None:
            continue
        channel = move.channel
        assert channel.rollout is not None
        assert before.rollout is not None
        assert channel.sequence == before.sequence + 1
        assert channel.rollout.share >= before.rollout.share
        assert set(before.withdrawn) <= set(channel.withdrawn)
        if before.withdrawn:
            assert channel == before, "nothing changes a withdrawn release"


# Reports


def test_the_same_reports_as_before_are_healthy() -> None:
    """Ten robots, an hour each, nothing new: healthy; with none of them, or too few decisions: not enough."""
    assert judge(fleet(), fleet(), 10, PARAMS).outcome is Outcome.HEALTHY
    assert judge([], fleet(), 10, PARAMS).outcome is Outcome.NOT_ENOUGH
    assert judge(fleet(1), fleet(), 10, PARAMS).outcome is Outcome.NOT_ENOUGH
    assert judge(fleet(decisions=10), fleet(), 10, PARAMS).outcome is Outcome.NOT_ENOUGH
    assert judge(fleet(1), fleet(), 1, PARAMS).outcome is Outcome.HEALTHY  # the share holds but one robot
    nobody = judge([], fleet(), 0, PARAMS)
    assert (nobody.outcome, nobody.text) == (Outcome.HEALTHY, "no robot that is online belongs to this share")


@pytest.mark.parametrize(
    ("new", "before", "says", "withdraw"),
    [
        ({"crashes": 2}, {}, "20 crashes", True),
        ({"collisions": 5}, {"collisions": 1}, "50 collisions", False),  # five times as often, at least 2.5
        ({"interventions": 5}, {"interventions": 1}, "50 interventions", False),
        ({"latency_p99_ms": 31.0}, {}, "p99 of a decision is 1.6 times", False),
        ({"blocked": 0.9}, {}, "90% of the decisions say blocked, 30% before", False),
        ({"blocked": 0.0}, {}, "0% of the decisions say blocked", False),
        ({"went_back": True}, {}, "10 of 10 robots went back", True),
    ],
)
def test_what_is_worse_than_before_is_unhealthy(
    new: dict[str, object], before: dict[str, object], says: str, withdraw: bool
) -> None:
    """Each kind of report by itself, and which of them withdraw without asking anybody."""
    limits = msgspec.structs.replace(PARAMS, withdraw_on=("crashes", "went_back"))
    verdict = judge(fleet(**new), fleet(**before), 10, limits)
    assert verdict.outcome is Outcome.UNHEALTHY
    assert says in verdict.text
    assert verdict.withdraw is withdraw


def test_a_handful_of_bad_moments_proves_nothing() -> None:
    """One crash, one collision more, one robot of many that went back: it could be chance, and is no reason to stop."""
    robots = fleet(20)
    some = [changed(robots[0], crashes=1, collisions=2, went_back=True), *robots[1:]]
    assert judge(some, fleet(20, collisions=0), 20, PARAMS).outcome is Outcome.HEALTHY


def changed(seen: Seen, **changes: object) -> Seen:
    return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]


def test_robots_are_compared_with_themselves() -> None:
    """A robot that was always slow makes no release slow, and slow robots elsewhere hide nothing."""
    slow, quick = (
        fleet(1, latency_p99_ms=80.0),
        [Seen("lab", f"q{n}", latency_p99_ms=10.0, windows=9) for n in range(9)],
    )
    assert judge(slow, [*slow, *quick], 1, PARAMS).outcome is Outcome.HEALTHY
    slower = fleet(1, latency_p99_ms=160.0)
    elsewhere = [Seen("lab", f"q{n}", latency_p99_ms=500.0, windows=9) for n in range(9)]
    assert judge(slower, [*slow, *elsewhere], 1, PARAMS).outcome is Outcome.UNHEALTHY


def test_an_engine_that_crashes_before_it_drives_is_seen() -> None:
    """No metrics come from a robot whose engine never ran: its crashes count all the same."""
    crashing = [Seen("lab", f"r{n}", crashes=10) for n in range(3)]
    assert judge(crashing, fleet(3), 3, PARAMS).outcome is Outcome.UNHEALTHY


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.floats(0, 1e6), st.integers(0, 50), st.floats(0, 1e6))
def test_the_interval_of_a_ratio_is_below_the_ratio(events: int, driven: float, before: int, before_s: float) -> None:
    """Its lower end never says more than the plain ratio does, and never less than nothing."""
    least = ratio_at_least(events, driven, before, before_s)
    assert least >= 0
    assert not math.isnan(least)
    if before and driven > 1 and before_s > 1:
        assert least <= (events / driven) / (before / before_s) * 1.0001


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_wilsons_interval_holds_the_share(share: float, count: int) -> None:
    """It is within 0..1 and around the share, to the nearest observation."""
    low, high = wilson(share, count)
    assume(count)
    found = round(share * count) / count
    assert -1e-9 <= low <= found + 1e-9
    assert found - 1e-9 <= high <= 1 + 1e-9


def test_the_params_of_the_repository_are_the_defaults() -> None:
    """What stands in params.yaml is what holds without the block, so that nobody is surprised."""
    assert load(ROOT / "params.yaml").rollout == RolloutParams()


def test_age_reads_what_the_service_writes() -> None:
    """issued_at is RFC 3339 with seconds or with milliseconds."""
    now = datetime.datetime(2026, 11, 23, 12, 0, 10, tzinfo=datetime.timezone.utc)
    for issued_at in (NOW, "2026-11-23T12:00:00.000+00:00"):
        assert rollout.age_s(msgspec.structs.replace(rolling(), issued_at=issued_at), now) == 10
