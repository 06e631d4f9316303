"""A person's word to the daemon: what is parsed, who may ask, and that `stop` holds."""

import contextlib
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import RejectedError
from serving.local import orders as orders_module
from serving.local.endpoint import SOCKET_FILE, Endpoint, ask
from serving.local.glimpse import Glimpse
from serving.local.orders import Orders
from serving.local.requests import Answer, GetStatus, Label, Resume, Rollback, Stop, parse
from tests.conftest import wait_for
from tests.robot_lab import Told, status
from tests.test_robot_control import Robot
from tests.test_robot_parts import make_candidate

pytestmark = pytest.mark.alone  # measures time


# The socket


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told()
    endpoint = Endpoint(tmp_path, made.do)
    endpoint.start()
    try:
        yield made
    finally:
        endpoint.close()


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode) | st.binary(min_size=4090, max_size=4200))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_a_request_or_refused(line: bytes) -> None:
    """Never another exception."""
    with contextlib.suppress(RejectedError):
        parse(line)


@given(
    st.sampled_from(["status", "stop", "resume", "rollback", "label", "capture-begin", "capture-finish", "drive", ""]),
    st.dictionaries(
        st.sampled_from(["text", "planned", "label", "place", "safety_distance_cm", "speed"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=600) | st.just("blocked"),
    ),
)
@settings(max_examples=300, deadline=None)
def test_requests_are_bounded(do: str, rest: dict[str, Any]) -> None:
    """What parses is within its limits: no text over 500 signs, no label but the two, no unknown field."""
    try:
        request = parse(json.dumps({"do": do, **rest}).encode())
    except RejectedError:
        return
    assert set(rest) <= set(request.__struct_fields__)
    assert len(getattr(request, "text", "")) <= 500
    assert getattr(request, "label", "free") in ("blocked", "free")


def test_the_socket_answers_its_user_alone(told: Told, tmp_path: Path) -> None:
    """Over a path longer than a socket's address may be, for user and group only."""
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    endpoint = Endpoint(deep, told.do)
    endpoint.start()
    try:
        answer = ask(deep, Stop(text="why"))
        assert answer.ok
        assert answer.said.startswith("user ")
        assert told.heard == [Stop(text="why")]
        assert stat.S_IMODE((deep / SOCKET_FILE).stat().st_mode) == 0o660
    finally:
        endpoint.close()
    with pytest.raises(ConnectionError):
        ask(deep, GetStatus())


@pytest.mark.parametrize("sent", [b"x" * 5000, b"nonsense\n", b'{"do":"stop","text":"' + b"y" * 600 + b'"}\n'])
def test_nonsense_gets_an_answer_and_the_next_is_served(told: Told, tmp_path: Path, sent: bytes) -> None:
    """Too long, no JSON, too long a text: refused in one line."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(5)
        channel.connect(str(tmp_path / SOCKET_FILE))
        channel.sendall(sent)
        answer = msgspec.json.decode(channel.makefile("rb").readline(), type=Answer)
    assert not answer.ok
    assert not told.heard
    assert ask(tmp_path, Resume()).ok


def test_silent_askers_do_not_keep_others_out(told: Told, tmp_path: Path) -> None:
    """Seven that say nothing, and a stop comes through at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            channel = stack.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(str(tmp_path / SOCKET_FILE))
        begun_s = time.monotonic()
        assert ask(tmp_path, Stop()).ok
        assert time.monotonic() - begun_s < 1.0


# The orders


class Nothing:
    """Probation, slots and the like for a robot that has none."""

    running = None

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def orders_of(robot: Robot, folder: Path, other: Nothing) -> Orders:
    anything: Any = other
    return Orders(
        folder, robot.control, anything, anything, robot.heard, Glimpse(5), anything, anything, lambda: status()
    )


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    made = Robot(tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert made.control.crashed is None


def test_stop_holds_until_resume_and_over_a_restart(robot: Robot, tmp_path: Path) -> None:
    """Zero at once and nothing after it, though the network goes on; remembered; an intervention is told once."""
    other = Nothing()
    orders = orders_of(robot, tmp_path, other)
    robot.supervisor.activate(make_candidate(tmp_path / "first"))
    wait_for(lambda: robot.body.moving, what="driving")
    answer = orders.do(Stop(text="stairs"), "test")
    stopped_s = time.monotonic()
    assert (answer.ok, "also after a restart" in answer.said) == (True, True)
    decided = robot.control.last
    wait_for(lambda: robot.control.last is not decided, what="another decision")
    frames = robot.body.frames
    wait_for(lambda: robot.body.frames > frames + 20, what="frames")
    assert all(move[1:] == (0.0, 0.0) for move in robot.body.moves if move.at_s > stopped_s)
    assert robot.control.status() == ("stopped", "by test: stairs")
    assert [event["detail"] for event in robot.heard.of("intervention")] == ["by test: stairs"]
    assert ("intervened", "by test: stairs") in other.calls
    orders.do(Stop(), "test")
    assert len(robot.heard.of("intervention")) == 1, "it did not drive any more"
    robot.control.let_go()
    again = orders_of(robot, tmp_path, other)  # as the next start does
    assert robot.control.status().mode == "stopped"
    assert again.do(Resume(), "test").said == "drives again"
    wait_for(lambda: robot.body.moving, what="driving again")
    orders_of(robot, tmp_path, other)
    assert robot.control.held is None


def test_a_planned_stop_is_no_intervention(robot: Robot, tmp_path: Path) -> None:
    """The engine is not to blame."""
    other = Nothing()
    robot.supervisor.activate(make_candidate(tmp_path / "first"))
    wait_for(lambda: robot.control.status().mode == "driving", what="driving")
    orders_of(robot, tmp_path, other).do(Stop(planned=True), "test")
    assert not robot.heard.of("intervention")
    assert not other.calls


def test_a_new_engine_takes_over_while_the_robot_is_held(robot: Robot, tmp_path: Path) -> None:
    """An update does not wait for `resume`, and moves nothing."""
    robot.control.hold("test")
    begun_s = time.monotonic()
    robot.supervisor.activate(make_candidate(tmp_path / "first"))
    assert time.monotonic() - begun_s < 4.0
    assert not robot.body.moved


def test_a_damaged_word_is_a_stop(robot: Robot, tmp_path: Path) -> None:
    """What cannot be read may have been `stop`."""
    (tmp_path / orders_module.STOPPED_FILE).write_text("{")
    orders_of(robot, tmp_path, Nothing())
    assert "damaged" in (robot.control.held or "")


def test_what_cannot_be_done_is_said(robot: Robot, tmp_path: Path) -> None:
    """No engine to go back to, no frame to label."""
    orders = orders_of(robot, tmp_path, Nothing())
    assert "no engine to go back to" in orders.do(Rollback(), "test").said
    assert "no frame came" in orders.do(Label(label="free"), "test").said


def test_the_watchdog_goes_by_the_control_loop(robot: Robot) -> None:
    """`turned_s` follows the loop, and stands when the loop hangs."""
    before_s = robot.control.turned_s
    wait_for(lambda: robot.control.turned_s > before_s, what="a turn")
    hanging = threading.Event()
    robot.body.read = lambda timeout_s: hanging.wait(20) and None  # type: ignore[method-assign]
    wait_for(lambda: time.monotonic() - robot.control.turned_s > 0.5, what="the age of the last turn")
    hanging.set()
