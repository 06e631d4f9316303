"""`jetloop-robot run` with a real repository and broker: a probation that ends badly, and a shadow that watches."""

import contextlib
import json
from typing import Any

import psutil
import pytest

from serving.contracts.events import wakeup_topic
from serving.slots import Candidate, Slots
from tests.conftest import Address, wait_for
from tests.robot_lab import START_S, Lab, lab  # noqa: F401
from tests.test_link_parts import Listener
from tests.test_robot_parts import make_candidate

pytestmark = pytest.mark.alone  # measures time


def kill_worker(lab: Lab) -> bool:
    """Ends the engine worker of a daemon that drives; False when there is none just now."""
    assert lab.process is not None
    for child in psutil.Process(lab.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith("engine/worker.py") for part in child.cmdline()):
                child.kill()
                return True
    return False


def test_an_engine_that_fails_on_the_floor_is_left_for_good(lab: Lab, mosquitto: Address) -> None:
    """Its worker dies again and again: the robot goes back by itself, says why, drives, and boots with the engine
    before; the release is not taken again."""
    first = make_candidate(lab.folder / "first", "1")
    second = make_candidate(lab.folder / "second", "2", convolutions=1)
    listener = Listener(mosquitto.port)

    def rolled_back() -> bool:
        if lab.is_doing("driving", second):
            kill_worker(lab)
        return "model.rolled-back" in [event.type for event in listener.events()]

    try:
        lab.bring_up(first, mosquitto.port)
        lab.publish(second, 2)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        lab.until("driving", second)
        wait_for(rolled_back, 2 * START_S, f"the event ({lab.log})")
        lab.until("driving", first)
        told = next(event.data for event in listener.events() if event.type == "model.rolled-back")
        lab.stop()
    finally:
        listener.close()
    assert (told["from"], told["to"]) == (second.passport.release_id, first.passport.release_id)
    assert told["cause"] == "engine-failed"
    slots = Slots(lab.folder / "state" / "slots")
    booted = slots.current()
    assert booted is not None
    assert booted.passport == first.passport
    assert slots.refused(second.passport.engine.sha256)
    assert "Traceback" not in lab.log.read_text()


def test_a_canary_watches_while_the_champion_drives(lab: Lab, mosquitto: Address) -> None:
    """With [shadow] in robot.toml the canary's engine is brought and compared; what drives stays the champion, and the
    motors are not held up. A wake-up of the canary's channel brings the next one long before the next poll."""
    champion, canary = make_candidate(lab.folder / "first", "1"), make_candidate(lab.folder / "c", "2", convolutions=1)
    newer = make_candidate(lab.folder / "d", "3", convolutions=2)
    listener = Listener(mosquitto.port)

    def shadows() -> list[dict[str, Any]]:
        return [event.data["shadow"] for event in listener.events() if event.type == "metrics"]

    def compares(candidate: Candidate) -> bool:
        release = candidate.passport.release_id
        return any(shadow["compared"] > 0 for shadow in shadows() if shadow["release"] == release)

    try:
        lab.publish(champion, 1)
        lab.publish(canary, 1, "canary")
        lab.configure(lab.serve(), mosquitto.port)
        lab.config.write_text(lab.config.read_text() + '[shadow]\nchannel = "canary"\n')
        lab.start()
        wait_for(lambda: compares(canary), 2 * START_S, f"a comparison ({lab.log})")
        lab.publish(newer, 2, "canary")
        listener.publish(wakeup_topic("canary"), b"{}", retain=True)
        wait_for(lambda: compares(newer), START_S, f"the next canary ({lab.log})")
        assert lab.is_doing("driving", champion)
        lab.stop()
    finally:
        listener.close()
    assert not any(shadow["disagreed"] for shadow in shadows()), json.dumps(shadows())
    assert "Traceback" not in lab.log.read_text()
