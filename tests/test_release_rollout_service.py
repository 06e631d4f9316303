"""Rollouts within the release service: what is published on an alias, what MLflow is told, what waits and resumes."""

from pathlib import Path

import msgspec
import pytest

from pipelines.params import RolloutParams
from pipelines.release.rollout_health import Outcome, Verdict
from pipelines.release.rollout_rules import RolloutRules
from pipelines.release.rollout_service import Rollouts
from pipelines.release.rollout_table import RolloutTable
from pipelines.release.service import Service, Wanted
from serving.contracts.releases import Channel, Rollout
from serving.errors import OperatorError
from tests.release_desk import TARGET, Desk

TAG = "release.rollout.champion"


class Told:
    """In the reports' place: says what the test wants."""

    def __init__(self) -> None:
        self.verdict_is = Verdict(Outcome.NOT_ENOUGH, "nobody told of it")

    def verdict(self, channel: Channel, params: RolloutParams) -> Verdict:
        return self.verdict_is


class RollingDesk(Desk):
    """A desk whose releases go step by step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rules = RolloutParams(step_min_s=0.0)
        self.reports = Told()
        self.table = RolloutTable(self.folder)
        rollouts = Rollouts(
            self.repository,
            self.table,
            lambda: self.rules,
            self.reports,  # type: ignore[arg-type]
            self.rung.append,
        )
        wanted = Wanted(("champion", "canary"), (TARGET,), lambda: self.limits)
        self.service = Service(
            self.registry,  # type: ignore[arg-type]
            self.repository,
            self.records,
            wanted,
            self.rung.append,
            rollouts=rollouts,
        )

    def rollout(self) -> Rollout:
        channel = self.channel()
        assert channel is not None
        assert channel.rollout is not None
        return channel.rollout

    def look(self, outcome: Outcome, text: str = "as well as before", withdraw: bool = False) -> None:
        self.reports.verdict_is = Verdict(outcome, text, withdraw)
        self.service.reconcile()


@pytest.fixture
def desk(tmp_path: Path) -> RollingDesk:
    return RollingDesk(tmp_path)


def second(desk: RollingDesk) -> tuple[str, str]:
    """Two versions, the second on its way."""
    first, new = desk.registry.add(), desk.registry.add()
    desk.release(first)
    desk.release(new)
    return first, new


def test_a_promoted_version_rolls_out_step_by_step(desk: RollingDesk) -> None:
    """Published for the first share, woken at each step, told in MLflow; the tag goes when all robots run it."""
    first, new = second(desk)
    assert (desk.rollout().share, desk.rollout().previous.model_version) == (0.1, first)  # type: ignore[union-attr]
    desk.service.reconcile()
    assert desk.tags(new)[TAG].startswith("10% of the robots since ")
    assert desk.status(new) == "released"
    shares = []
    for _ in range(3):
        desk.look(Outcome.HEALTHY)
        shares.append(desk.rollout().share)
    assert shares == [0.5, 1.0, 1.0]
    assert [channel.sequence for channel in desk.rung] == [1, 2, 3, 4]
    assert TAG not in desk.tags(new)
    assert not desk.service.reconcile(), "with nothing to do nothing is done"


def test_a_pause_and_a_withdrawal_are_told_in_mlflow(desk: RollingDesk) -> None:
    """The reason and what to do stand at the version; a withdrawn one is not released again by its alias."""
    first, new = second(desk)
    desk.look(Outcome.UNHEALTHY, "p99 of a decision is 1.9 times what it was")
    assert desk.rollout().paused
    assert "paused at 10% of the robots: p99 of a decision is 1.9 times what it was" in desk.tags(new)[TAG]
    release_id = desk.rung[-1].release_id
    desk.table.ask("champion", "withdraw", release_id, "somebody")
    desk.service.reconcile()
    channel = desk.channel()
    assert channel is not None
    assert channel.withdrawn == [release_id]
    assert desk.status(new) == "withdrawn"
    assert "by somebody" in desk.tags(new)["release.reason"]
    desk.service.reconcile()
    assert TAG not in desk.tags(new)
    desk.release(first)
    desk.release(new)  # the alias again
    assert desk.channel().model_version == first  # type: ignore[union-attr]
    assert desk.status(new) == "refused"
    assert "withdrawn" in desk.tags(new)["release.reason"]


def test_crashes_withdraw_by_themselves(desk: RollingDesk) -> None:
    """Nobody is asked: the channel names the release as withdrawn, and the version says so."""
    _, new = second(desk)
    desk.look(Outcome.UNHEALTHY, "12 crashes in 0.10 h", withdraw=True)
    assert desk.channel().withdrawn == [desk.rung[-1].release_id]  # type: ignore[union-attr]
    assert desk.status(new) == "withdrawn"
    assert "12 crashes" in desk.tags(new)["release.reason"]


def test_a_service_that_is_started_again_goes_on_where_it_was(desk: RollingDesk, tmp_path: Path) -> None:
    """How far it came is in the signed channel file, also when rollout.db is lost."""
    second(desk)
    desk.look(Outcome.HEALTHY)
    assert desk.rollout().share == 0.5
    (desk.folder / "rollout.db").unlink()
    again = RollingDesk(tmp_path)
    again.service.reconcile()
    assert again.rollout().share == 0.5
    again.look(Outcome.HEALTHY)
    assert again.rollout().share == 1.0


def test_canary_first_waits_and_then_releases_by_itself(desk: RollingDesk) -> None:
    """The alias champion on a version that canary never ran: nothing is published, its reason says what to do."""
    first, new = desk.registry.add(), desk.registry.add()
    desk.release(first)
    desk.rules = msgspec.structs.replace(desk.rules, canary_first=True, canary_min_s=0.0)
    desk.release(new)
    assert desk.channel().model_version == first  # type: ignore[union-attr]
    assert "set the alias canary on this version first" in desk.tags(new)["release.reason"]
    desk.promote(new, "canary")
    desk.look(Outcome.NOT_ENOUGH)
    assert desk.channel().model_version == first  # type: ignore[union-attr]
    for _ in range(2):
        desk.look(Outcome.HEALTHY)
    assert desk.channel().model_version == new  # type: ignore[union-attr]
    assert desk.status(new) == "released"


def test_the_rules_are_read_again_and_a_broken_edit_keeps_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the block the defaults hold; a wrong one at the start is an error in one line."""
    path = tmp_path / "params.yaml"
    path.write_text("gates: {}\n")
    rules = RolloutRules(path)
    assert rules() == RolloutParams()
    path.write_text("rollout:\n  steps: [0.2, 1]\n")
    assert rules().steps == (0.2, 1)
    for broken in ("rollout:\n  steps: [0.9, 0.5]\n", "rollout: [\n", "rollout:\n  step: 1\n"):
        path.write_text(broken)
        assert rules().steps == (0.2, 1)
        with pytest.raises(OperatorError):
            RolloutRules(path)
    path.unlink()
    assert rules().steps == (0.2, 1)
    assert caplog.text.count("stay as they were") == 4
