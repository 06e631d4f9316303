"""What becomes of a version: the states of an attempt, what ends one, what is told to MLflow."""

import json
import logging
from pathlib import Path

import pytest

from pipelines.release import steps
from pipelines.release.database import Database
from pipelines.release.journal import Journal, State, Waiting, import_history
from pipelines.release.listing import listing
from serving.errors import OperatorError
from tests.release_desk import Desk

GOOD = ["pending", "gated", "compiled", "verified", "signed", "released"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_good_version_goes_through_every_state(desk: Desk) -> None:
    """Each state once, in order; then there is nothing to do."""
    version = desk.registry.add()
    desk.release(version)
    assert desk.states() == GOOD
    assert desk.status(version) == "released"
    assert [channel.sequence for channel in desk.rung] == [1]
    assert not desk.service.reconcile()
    assert desk.told() == [("champion", version, "released", 1)]


def test_an_engine_that_was_compiled_is_not_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refused for its latency, judged again by another service under other limits: the engine comes from staging."""
    desk = Desk(tmp_path, max_latency_ms={"cpu-ort-fp32": 1e-6})
    version = desk.registry.add()
    with caplog.at_level(logging.INFO):
        desk.release(version)
        assert desk.states() == ["pending", "gated", "compiled", "refused"]
        assert "latency.cpu-ort-fp32" in desk.tags(version)["release.reason"]
        desk.database.close()
        again = Desk(tmp_path)
        again.service.reconcile()
    assert again.status(version) == "released"
    assert caplog.text.count("compiled for cpu-ort-fp32") == 1


def test_an_altered_engine_in_staging_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is not what was measured is never signed."""
    desk = Desk(tmp_path, max_latency_ms={"cpu-ort-fp32": 1e-6})
    version = desk.registry.add()
    desk.release(version)
    (staged,) = (desk.folder / "staging").iterdir()
    staged.write_bytes(b"another")
    desk.limits = Desk(tmp_path).limits
    with caplog.at_level(logging.INFO):
        desk.service.reconcile()
    assert "missing or altered" in caplog.text
    assert desk.status(version) == "released"


def test_going_back_signs_and_does_not_judge(desk: Desk) -> None:
    """A version that was released before is verified at once, also when gates have risen since."""
    first, second = desk.registry.add(), desk.registry.add()
    desk.release(first)
    desk.release(second)
    desk.limits = Desk(desk.folder.parent, min_blocked_recall=0.999).limits
    desk.release(first)
    assert desk.states() == ["pending", "verified", "signed", "released"]
    assert [one[3] for one in desk.told()] == [1, 2, 3]
    marked = [(one["version"], one["current"]) for one in listing(desk.journal, desk.repository)]
    assert marked == [(first, True), (second, False), (first, False)]


def test_an_attempt_ends_when_the_alias_goes_elsewhere(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow fails in mid-attempt, then a person changes their mind: the first version is told."""
    first, second = desk.registry.add(), desk.registry.add()

    def fail(*_: object) -> None:
        raise OperatorError("MLflow is down")

    with monkeypatch.context() as patch:
        patch.setattr(steps.candidate, "fetch", fail)
        with pytest.raises(OperatorError):
            desk.release(first)
    assert desk.states() == ["pending", "gated"]
    desk.release(second)
    assert desk.told() == [("champion", first, "superseded", None), ("champion", second, "released", 1)]
    assert desk.status(first) == "superseded"
    assert f"went on to version {second}" in desk.tags(first)["release.reason"]
    assert "**Not released**" in desk.registry.description(first)
    desk.promote(None)
    desk.service.reconcile()
    assert desk.told()[-1] == ("champion", second, "released", 1)


def test_an_attempt_under_old_gates_begins_anew(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that were raised while an attempt was held up hold for it."""
    version = desk.registry.add()
    with monkeypatch.context() as patch:
        patch.setattr(steps.candidate, "compiled", lambda *_: (_ for _ in ()).throw(OperatorError("no disk")))
        with pytest.raises(OperatorError):
            desk.release(version)
    desk.limits = Desk(desk.folder.parent, min_blocked_recall=0.999).limits
    desk.service.reconcile()
    assert [one[2] for one in desk.told()] == ["superseded", "refused"]
    assert desk.status(version) == "refused"


def test_a_target_that_is_built_elsewhere_is_waited_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The version stays gated, its tags say for what, once; it goes on when the engine is there."""
    version = desk.registry.add()

    def wait(*_: object) -> None:
        raise Waiting("waits for an engine for jetson-nano-trt8.2-fp16: run `jetloop-robot build` on one")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(steps.candidate, "compiled", wait)
        desk.release(version)
        desk.service.reconcile()
    assert desk.status(version) == "gated"
    assert "jetloop-robot build" in desk.tags(version)["release.reason"]
    assert caplog.text.count("waits for an engine") == 1
    desk.service.reconcile()
    assert desk.states() == GOOD
    assert "release.reason" not in desk.tags(version)


def test_a_withdrawn_release_is_not_released_again(desk: Desk) -> None:
    """Not while the alias stays, and when a person sets it anew it is refused in words."""
    first, second = desk.registry.add(), desk.registry.add()
    desk.release(first)
    desk.release(second)
    channel = desk.channel()
    assert channel
    desk.journal.withdraw(channel.release_id, "robots hit things")
    desk.service.reconcile()
    assert desk.status(second) == "withdrawn"
    assert "robots hit things" in desk.tags(second)["release.reason"]
    desk.release(first)
    desk.release(second)
    assert desk.told()[-1] == ("champion", second, "refused", None)
    assert "it was withdrawn (robots hit things)" in desk.tags(second)["release.reason"]
    assert not desk.service.reconcile()


def test_tags_that_a_person_took_away_are_written_anew(desk: Desk) -> None:
    """Of a running release; of a refused one it means: judge it again."""
    version = desk.registry.add()
    desk.release(version)
    desk.registry.delete_tag(version, "release.status")
    desk.service.reconcile()
    assert desk.status(version) == "released"
    assert len(desk.told()) == 1


def test_a_version_deleted_from_mlflow_stops_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Its end is told to nobody, with a line, and the next version is released."""
    first, second = desk.registry.add(), desk.registry.add()
    desk.journal.begin("champion", first, "r", "", [], "", 0)
    desk.registry.delete(first)
    desk.release(second)
    assert desk.told() == [("champion", first, "superseded", None), ("champion", second, "released", 1)]
    assert "gone from MLflow" in caplog.text


def test_one_attempt_a_channel_and_known_moves_alone(desk: Desk) -> None:
    """The database itself refuses a second attempt, a move that does not exist, and one that was made already."""
    attempt = desk.journal.begin("champion", "1", "r", "", [], "", 0)
    with pytest.raises(Exception, match="UNIQUE"):
        desk.journal.begin("champion", "2", "r", "", [], "", 0)
    with pytest.raises(ValueError, match="from pending to signed"):
        desk.journal.move(attempt, State.SIGNED)
    desk.journal.move(attempt, State.GATED)
    with pytest.raises(RuntimeError, match="no longer pending"):
        desk.journal.move(attempt, State.GATED)


def test_a_lost_database_loses_history_alone(tmp_path: Path) -> None:
    """What is published is in the repository: nothing is signed again, and the running release is adopted."""
    desk = Desk(tmp_path)
    version = desk.registry.add()
    desk.release(version)
    desk.database.close()
    for file in desk.folder.glob("releases.db*"):
        file.unlink()
    again = Desk(tmp_path)
    assert not again.service.reconcile()
    again.registry.delete_tag(version, "release.status")
    again.service.reconcile()
    assert again.told() == [("champion", version, "released", 1)]
    assert again.status(version) == "released"
    assert not again.rung


def test_a_damaged_database_is_said_in_one_line(tmp_path: Path) -> None:
    """Not a database, or one of a newer jetloop: the operator learns what to do."""
    (tmp_path / "releases.db").write_bytes(b"no database" * 1000)
    with pytest.raises(OperatorError, match="move it away"):
        Database.open(tmp_path)
    (tmp_path / "releases.db").unlink()
    database = Database.open(tmp_path)
    with database.changing() as db:
        db.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(OperatorError, match="newer jetloop"):
        Database.open(tmp_path)


def test_an_old_history_is_taken_over_once(tmp_path: Path) -> None:
    """Released and refused decisions appear as they did; the file is renamed, and nothing is taken twice."""
    old = [
        {"issued_at": "2026-01-01T00:00:00Z", "channel": "champion", "version": "1", "status": "released"}
        | {"release_id": "r-1", "sequence": 1},
        {"issued_at": "2026-01-02T00:00:00Z", "channel": "champion", "version": "2", "status": "refused"}
        | {"release_id": "r-2", "sequence": None, "reason": "blocked_recall: 0.7 < 0.8"},
    ]
    file = tmp_path / "history.json"
    file.write_text(json.dumps(old))
    database = Database.open(tmp_path)
    journal = Journal(database)
    assert import_history(database, file) == 2
    assert not file.exists()
    file.write_text(json.dumps(old))  # as after a kill before the renaming
    assert import_history(database, file) == 0
    found = [(one.version, one.state.value, one.sequence, one.reason) for one in journal.attempts()]
    assert found == [("1", "released", 1, ""), ("2", "refused", None, "blocked_recall: 0.7 < 0.8")]
    assert journal.untold() == []
