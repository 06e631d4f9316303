"""`jetloop-robot run` as a process: alone, with everything absent, and with a real repository and broker."""

import csv
import re
import subprocess
import sys
import time
from typing import Any, Dict

import psutil
import pytest

from serving.contracts.events import wakeup_topic
from tests.conftest import ROOT, Address, wait_for
from tests.robot_lab import START_S, Lab, lab  # noqa: F401
from tests.test_link_parts import Listener
from tests.test_robot_parts import make_candidate

pytestmark = pytest.mark.alone  # measures time


def test_alone_it_stands_still_and_says_what_it_tries(lab: Lab) -> None:
    """No model, no broker, no repository: no traceback, no motion; retries in the log; SIGTERM ends it in time."""
    lab.configure()
    lab.start()
    lab.until("no-model")
    wait_for(lambda: lab.log.read_text().count("trying again") >= 2, START_S, "both retries")
    told = lab.ask("status")
    assert "lab/r1, ring champion" in told.stdout
    assert "no-model" in told.stdout
    assert f"runs, process {lab.process.pid if lab.process else 0}" in told.stdout
    assert lab.stop() < 2.0
    assert "Traceback" not in lab.log.read_text()
    moves = lab.moves()
    assert moves
    assert all(move[1:] == (0.0, 0.0) for move in moves)
    assert "does not run" in lab.ask("status").stdout


def test_a_second_daemon_on_the_same_state_is_refused(lab: Lab) -> None:
    """One line that says so, exit code 1, and the first one does not notice."""
    lab.configure()
    lab.start()
    lab.until("no-model")
    second = lab.ask("run")
    assert second.returncode == 1
    assert second.stderr.startswith("error: another jetloop-robot runs with")
    assert second.stderr.count("\n") == 1
    assert lab.is_doing("no-model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_dir": "robot.toml/state"}, "cannot be written: Not a directory"),
        ({"kind": "zeppelin"}, "hardware.kind is `zeppelin`; installed here: .*scripted"),
        ({"options": "wings = 2"}, r"\[hardware.options\] does not fit .*wings"),
    ],
    ids=["state_dir", "hardware", "options"],
)
def test_what_the_operator_can_mend_is_one_line(lab: Lab, settings: Dict[str, Any], message: str) -> None:
    """A state_dir that cannot be written, a body that is not installed: exit code 1, no traceback."""
    lab.configure(**settings)
    answer = lab.ask("run")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert re.search(message, answer.stderr)


def test_the_whole_turn_on_one_robot(lab: Lab, mosquitto: Address) -> None:
    """Signed release over HTTP, wake-up over MQTT, swap while driving, lost worker, goodbye: told over MQTT, in order,
    and the engine on the robot is the one of the passport."""
    first = make_candidate(lab.folder / "first", "1")
    second = make_candidate(lab.folder / "second", "2", shift=0.001)
    listener = Listener(mosquitto.port)
    try:
        wait_for(lambda: listener.subscriptions, what="the listener")
        lab.configure(lab.serve(), mosquitto.port)
        lab.start()
        wait_for(lambda: any(state.mode == "no-model" for state in listener.states()), START_S, "the first state")
        assert all(move[1:] == (0.0, 0.0) for move in lab.moves())
        lab.publish(first, 1)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        lab.until("driving", first)
        begun = len(lab.moves())
        lab.publish(second, 2)
        listener.publish(wakeup_topic("champion"), b"{}", retain=True)
        lab.until("driving", second)
        assert (0.0, 0.0) not in [move[1:] for move in lab.moves()[begun:]]
        assert lab.process is not None
        (worker,) = psutil.Process(lab.process.pid).children()
        worker.kill()
        killed_s = time.monotonic()
        wait_for(lambda: [m for m in lab.moves() if m.at_s >= killed_s and m[1:] == (0.0, 0.0)], what="the stop")
        wait_for(lambda: "engine.failed" in [event.type for event in listener.events()], what="the event")
        stopped_s = time.monotonic()
        wait_for(lambda: lab.moves()[-1].at_s > stopped_s and any(lab.moves()[-1][1:]), START_S, "driving again")
        wait_for(lambda: "metrics" in [event.type for event in listener.events()], what="metrics")
        assert lab.stop() < 2.0
        stopped_s = time.monotonic()
        wait_for(lambda: not listener.states()[-1].online, what="the state offline")
        assert lab.moves()[-1][1:] == (0.0, 0.0)
        assert lab.moves()[-1].at_s <= stopped_s
        events = listener.events()
    finally:
        listener.close()
    kinds = [event.type for event in events if event.type not in ("metrics", "frame.stale")]
    assert kinds == ["robot.started", "model.activated", "model.activated", "engine.failed"]
    sequences = [event.sequence for event in events]
    assert sequences == list(range(1, len(sequences) + 1))
    activated = [event for event in events if event.type == "model.activated"]
    assert [event.release for event in activated] == [first.passport.release_id, second.passport.release_id]
    assert activated[1].data["gap_ms"] < 200
    with (lab.folder / "state" / "decisions.csv").open(newline="") as file:
        engines = [row["engine"] for row in csv.DictReader(file)]
    assert list(dict.fromkeys(engines)) == [c.passport.engine.sha256[:8] for c in (first, second)]
    assert "Traceback" not in lab.log.read_text()


def test_after_a_kill_it_boots_from_its_slot_without_a_network(lab: Lab) -> None:
    """kill -9 of the daemon; repository and broker gone: the next start drives with the model it had."""
    release = make_candidate(lab.folder / "first", "1")
    lab.bring_up(release)
    wait_for(lambda: (lab.folder / "state" / "slots" / "current.json").exists(), what="the commit")
    assert lab.process is not None
    workers = psutil.Process(lab.process.pid).children()
    lab.process.kill()
    lab.process.wait(10)
    wait_for(lambda: not any(worker.is_running() for worker in workers), what="the end of the worker")
    lab.configure()
    lab.start()
    lab.until("driving", release)
    assert lab.stop() < 2.0


def test_a_damaged_pointer_and_a_lost_motor_guard_are_told(lab: Lab, mosquitto: Address) -> None:
    """`current.json` is noise at the start: the newest whole slot drives without a network, and an event and the state
    say so. Then the motor guard is killed: another one drives the motors, and an event has the cause."""
    release = make_candidate(lab.folder / "first", "1")
    lab.bring_up(release)
    wait_for((lab.folder / "state/slots/current.json").exists, what="the commit")
    lab.stop()
    (lab.folder / "state/slots/current.json").write_bytes(b"noise")
    listener = Listener(mosquitto.port)

    def told(kind: str) -> list[dict[str, Any]]:
        return [event.data for event in listener.events() if event.type == kind]

    try:
        lab.configure(mqtt_port=mosquitto.port, kind="simulated")
        lab.start()
        lab.until("driving", release)
        wait_for(lambda: told("slots.damaged"), what="the event")
        assert told("slots.damaged")[0]["release"] == release.passport.release_id
        wait_for(lambda: "current.json was damaged" in listener.states()[-1].reason, what="the state")
        assert "current.json was damaged" in lab.ask("status").stdout
        assert lab.process is not None
        children = psutil.Process(lab.process.pid).children()
        (guard,) = [one for one in children if any(part.endswith("motor_guard.py") for part in one.cmdline())]
        guard.kill()
        wait_for(lambda: told("motors.guard-restarted"), START_S, f"the event ({lab.log})")
        (restarted,) = told("motors.guard-restarted")
        assert (restarted["cause"], restarted["detail"]) == ("ended", "the motor guard ended by SIGKILL")
        lab.until("driving", release)
        lab.stop()
    finally:
        listener.close()
    assert "Traceback" not in lab.log.read_text()


def test_sigterm_while_an_engine_loads_is_in_time_too(lab: Lab) -> None:
    """Neither the daemon nor its half-loaded worker stays behind."""
    lab.publish(make_candidate(lab.folder / "first", "1"), 1)
    lab.configure(lab.serve())
    lab.start()
    assert lab.process is not None
    daemon = psutil.Process(lab.process.pid)
    wait_for(daemon.children, START_S, f"a worker ({lab.log})")
    workers = daemon.children()
    assert lab.stop() < 2.0
    wait_for(lambda: not any(worker.is_running() for worker in workers), what="the end of the worker")
    assert "Traceback" not in lab.log.read_text()


def test_the_daemon_needs_nothing_of_the_platform() -> None:
    """`pip install .[device]` is enough: with torch, mlflow, dvc and our other packages barred, it imports."""
    program = """
import sys
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BARRED:
            raise ImportError(f"{name} is not on a robot")
BARRED = {"torch", "torchvision", "mlflow", "dvc", "great_expectations", "nicegui", "sqlalchemy", "pandas", "onnx",
          "scipy", "matplotlib", "rich", "pipelines", "training", "telemetry", "simulator"}
sys.meta_path.insert(0, Bar())
import serving.daemon, serving.cli
assert not BARRED & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def test_signals_are_only_taken_by_the_command() -> None:
    """Importing the daemon changes no signal handler."""
    program = (
        "import signal\nbefore = signal.getsignal(signal.SIGTERM)\nimport serving.daemon\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
