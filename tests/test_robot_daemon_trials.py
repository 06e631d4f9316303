"""`jetloop-robot run` with a real repository and broker: a probation that ends badly, and a shadow that watches."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from serving.contracts.events import wakeup_topic
from serving.contracts.releases import file_path
from serving.slots import Slots
from tests.conftest import Address, wait_for
from tests.test_link_parts import Listener
from tests.test_robot_daemon import START_S, Lab
from tests.test_robot_parts import TARGET, channel_of, make_candidate

pytestmark = pytest.mark.alone  # measures time


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.close()


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
        lab.publish(first, 1)
        lab.configure(lab.serve(), mosquitto.port)
        lab.start()
        wait_for(lambda: lab.is_doing("driving", first), START_S, f"driving ({lab.log})")
        lab.publish(second, 2)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        wait_for(lambda: lab.is_doing("driving", second), START_S, f"the second release ({lab.log})")
        wait_for(rolled_back, 2 * START_S, f"the event ({lab.log})")
        wait_for(lambda: lab.is_doing("driving", first), START_S, f"driving again ({lab.log})")
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
    motors are not held up."""
    champion, canary = make_candidate(lab.folder / "first", "1"), make_candidate(lab.folder / "c", "2", convolutions=1)
    listener = Listener(mosquitto.port)
    passport = canary.passport
    try:
        lab.publish(champion, 1)
        lab.repository.publish(
            {
                passport.engine.path: canary.engine,
                passport.golden.path: canary.golden,
                file_path(passport.release_id, TARGET, "passport.json"): msgspec.json.encode(passport),
            },
            [msgspec.structs.replace(channel_of(passport.release_id), channel="canary")],
        )
        lab.configure(lab.serve(), mosquitto.port)
        lab.config.write_text(lab.config.read_text() + '[shadow]\nchannel = "canary"\n')
        lab.start()

        def compared() -> bool:
            shadows = [event.data["shadow"] for event in listener.events() if event.type == "metrics"]
            return any(shadow["compared"] > 0 for shadow in shadows)

        wait_for(compared, 2 * START_S, f"a comparison ({lab.log})")
        assert lab.is_doing("driving", champion)
        metrics = [event.data for event in listener.events() if event.type == "metrics"][-1]
        lab.stop()
    finally:
        listener.close()
    assert metrics["shadow"]["release"] == passport.release_id
    assert metrics["shadow"]["disagreed"] == 0, json.dumps(metrics)
    assert "Traceback" not in lab.log.read_text()
