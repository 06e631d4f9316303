"""A person's commands to a whole daemon: over a kill, and on a disk that cannot be written."""

import contextlib
import json
import shutil
import subprocess
import time

import pytest

from serving.errors import OperatorError
from serving.local.endpoint import ask
from serving.local.requests import GetStatus
from tests.conftest import wait_for
from tests.robot_lab import START_S, Lab, lab  # noqa: F401
from tests.test_robot_parts import make_candidate

pytestmark = pytest.mark.alone  # measures time


def test_the_commands_of_a_person(lab: Lab) -> None:
    """status, label, capture, stop over a kill -9 and a new start, resume: each by its command."""
    lab.configure()
    assert "no jetloop-robot runs" in lab.ask("stop").stderr
    lab.bring_up(make_candidate(lab.folder / "first", "1"))
    for label in ("blocked", "free"):
        assert lab.ask("label", label).returncode == 0
    told = json.loads(lab.ask("status", "--json").stdout)
    assert (told["runs"], told["mode"], told["capture"]["blocked"]) == (True, "driving", 1)
    assert "stays here" in lab.ask("capture", "finish").stdout
    assert lab.ask("stop", "--text", "stairs").returncode == 0
    lab.until("stopped")
    assert lab.process is not None
    lab.process.kill()
    lab.process.wait(10)
    begun_s = time.monotonic()
    lab.start()
    lab.until("stopped")
    wait_for(lambda: "drives" in lab.log.read_text().split("booting with")[-1], START_S, "the engine")
    assert all(move[1:] == (0.0, 0.0) for move in lab.moves() if move.at_s > begun_s)
    assert "stairs" in lab.ask("status").stdout
    assert lab.ask("resume").stdout == "drives again\n"
    lab.until("driving")
    assert "no engine to go back to" in lab.ask("rollback").stderr
    assert lab.stop() < 2.0
    assert len(list((lab.folder / "state/captures").glob("*.zip"))) == 1
    assert "Traceback" not in lab.log.read_text()


def test_on_a_read_only_disk_it_drives_with_what_its_slots_hold(lab: Lab) -> None:
    """Boots, drives, keeps a second daemon away, says what is wrong, and obeys."""
    alone = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount; run it as root")
    lab.bring_up(make_candidate(lab.folder / "first", "1"))
    wait_for((lab.folder / "state/slots/current.json").exists, what="the commit")
    lab.stop()
    line, environment = lab.command("run")
    state = lab.folder / "state"
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    with lab.log.open("ab") as output:
        lab.process = subprocess.Popen(
            [*alone, "sh", "-c", script, str(state), *line],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def says() -> list[str]:
        with contextlib.suppress(OSError, OperatorError):
            answer = ask(state, GetStatus())
            if answer.status is not None and answer.status.state.mode == "driving":
                return answer.status.troubles
        return []

    wait_for(lambda: "Read-only" in str(says()), START_S, f"driving with a trouble ({lab.log})")
    assert "another jetloop-robot" in lab.ask("run").stderr
    assert "trouble" in lab.ask("status").stdout
    assert "until the next start only" in lab.ask("stop").stdout
    wait_for(lambda: lab.moves()[-1][1:] == (0.0, 0.0), what="motors at zero")
    assert "Read-only" in lab.ask("label", "free").stderr
    assert lab.stop() < 2.5
    assert "Traceback" not in lab.log.read_text()
