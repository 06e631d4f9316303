"""Webhook and polling together: no change of an alias is missed, none is handled twice."""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.release.aliases import LATE_S, Aliases
from pipelines.release.database import Database
from tests import release_lab
from tests.conftest import wait_for
from tests.release_desk import Desk
from tests.release_lab import NEVER_S, NOBODY, Lab, announced, delivery, post

lab = release_lab.lab  # a fixture
POOR = {"test/balanced_accuracy": 0.75, "test/blocked_recall": 0.9}


@pytest.fixture
def aliases(tmp_path: Path) -> Aliases:
    return Aliases(Database.open(tmp_path))


def look(aliases: Aliases, version: str, now_s: float = 1000.0) -> int:
    return aliases.look("champion", version, aliases.heard_so_far(), now_s)


def test_a_change_is_counted_once_however_it_is_known(aliases: Aliases) -> None:
    """Seen and then heard, or heard and then seen, or heard twice: one change."""
    first = look(aliases, "1")
    assert aliases.hear("d1", "champion", "1", 1001.0)  # late
    assert look(aliases, "1") == first
    assert aliases.hear("d2", "champion", "2", 1002.0)  # early
    second = look(aliases, "2")
    assert second != first
    assert look(aliases, "2") == second
    assert not aliases.hear("d2", "champion", "2", 1003.0)  # replayed
    assert look(aliases, "2") == second


def test_there_and_back_between_two_looks_is_a_change(aliases: Aliases) -> None:
    """Looking sees the same version; the webhook told of the other in between, in whatever order."""
    first = look(aliases, "1")
    aliases.hear("d2", "champion", "1", 1002.0)
    aliases.hear("d1", "champion", "2", 1001.0)
    back = look(aliases, "1")
    assert back != first
    assert look(aliases, "1") == back


def test_deliveries_that_come_late_change_nothing(aliases: Aliases) -> None:
    """Polling saw the alias go there and back; MLflow's deliveries of both come after."""
    for version in ("1", "2"):
        look(aliases, version)
    back = look(aliases, "1")
    aliases.hear("d1", "champion", "2", 1000.0 + LATE_S / 2)
    aliases.hear("d2", "champion", "1", 1000.0 + LATE_S / 2)
    assert look(aliases, "1") == back


def test_what_is_heard_while_mlflow_answers_waits_for_the_next_look(aliases: Aliases) -> None:
    """The answer may be from before the change: it must not count as going there and back."""
    first = look(aliases, "1")
    mark = aliases.heard_so_far()
    aliases.hear("d1", "champion", "2", 1001.0)
    assert aliases.look("champion", "1", mark, 1001.0) == first
    assert look(aliases, "2") != first


@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=12), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_last_change_is_always_seen(changes: list[str], chance: random.Random) -> None:
    """Whatever is heard when, in any order: looking ends at what the alias is on, and then nothing more changes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(Path(folder))
        aliases, waiting = Aliases(database), []
        for number, version in enumerate(changes):
            if version:
                waiting.append((f"d{number}", version))
            chance.shuffle(waiting)
            if waiting and chance.random() < 0.5:
                name, heard = waiting.pop()
                aliases.hear(name, "champion", heard, 1000.0 + number)
            if chance.random() < 0.5:
                look(aliases, version, 1000.0 + number)
        last = look(aliases, changes[-1], 2000.0)
        assert look(aliases, changes[-1], 2000.0) == last
        newest = database.rows("SELECT version FROM alias_change ORDER BY id DESC LIMIT 1")
        assert newest[0]["version"] == changes[-1]
        database.close()


def test_a_refused_version_that_comes_back_is_judged_once_more(tmp_path: Path) -> None:
    """Asked for anew is judged anew, over a restart too; standing still is not."""
    desk = Desk(tmp_path)
    poor, good = desk.registry.add(POOR), desk.registry.add()
    desk.release(poor)
    desk.service.reconcile()
    assert len(desk.told()) == 1
    desk.release(good)
    desk.promote(poor)
    desk.database.close()
    again = Desk(tmp_path)
    again.service.reconcile()
    again.service.reconcile()
    assert [one[1:3] for one in again.told()] == [(poor, "refused"), (good, "released"), (poor, "refused")]


def test_toggled_quickly_each_change_is_handled_once(lab: Lab) -> None:
    """A→B→A, again and again, with MLflow's webhook and fast polling: A runs at the end, no sequence is left out."""
    first, second = lab.version(), lab.version()
    lab.serve(poll_s=0.1)
    lab.ready()
    wait_for(lambda: lab.get("/healthz")["webhook"], timeout_s=60, what=f"the webhook ({lab.said()})")
    for version in (first, second, first, second, first):
        lab.promote(version)
    lab.wait_for_status(first, "released")

    def settled() -> bool:
        channel = lab.channel()
        listed = lab.get("/api/releases")
        ends = ("released", "superseded")
        return bool(channel and channel.model_version == first and all(one["status"] in ends for one in listed))

    wait_for(settled, timeout_s=60, what=f"the end of it ({lab.said()})")
    channel = lab.channel()
    assert channel
    released = [one for one in reversed(lab.get("/api/releases")) if one["status"] == "released"]
    assert [one["sequence"] for one in released] == list(range(1, channel.sequence + 1))
    versions = [one["version"] for one in released]
    assert all(a != b for a, b in itertools.pairwise(versions)), versions
    assert lab.said().count("is published") == channel.sequence
    assert lab.said().count("compiled for") <= 2
    assert "Traceback" not in lab.said()


def test_a_replayed_webhook_does_nothing(lab: Lab) -> None:
    """The same body and headers again: answered, and neither judged nor published again."""
    version, other = lab.version(metrics=POOR), lab.version()
    lab.promote(other)
    lab.promote(version)
    lab.serve("--webhook-url", NOBODY, poll_s=NEVER_S)
    lab.ready()
    lab.wait_for_status(version, "refused")
    secret = (lab.release / "webhook.secret").read_text()
    bodies = [announced(lab.model, other), announced(lab.model, version)]
    headers = [delivery(secret, body, delivery_id=f"d{number}") for number, body in enumerate(bodies)]
    url = f"{lab.url}/webhooks/mlflow"

    def judged() -> int:
        return lab.said().count(f"version {version} is promoted")

    for head, body in zip(headers, bodies, strict=True):
        assert post(url, head, body) == 204
    wait_for(lambda: judged() == 2, what=f"judging what came back ({lab.said()})")  # it was elsewhere in between
    for _ in range(3):
        for head, body in zip(headers, bodies, strict=True):
            assert post(url, head, body) == 204
    wait_for(lambda: len(lab.get("/api/releases")) == 2, what="two attempts")
    lab.promote(other)
    assert post(url, delivery(secret, bodies[0], delivery_id="d9"), bodies[0]) == 204
    lab.wait_for_status(other, "released")  # all that came before is handled by now
    assert judged() == 2
    assert json.dumps(lab.get("/api/releases")).count('"status": "released"') == 1
