"""A person's word to the daemon: what is parsed, who may ask, that `stop` holds, and what the page lets through."""

import contextlib
import http.client
import json
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import PageSettings
from serving.contracts.events import RobotState, utc_now
from serving.errors import OperatorError, RejectedError
from serving.hardware.base import Frame
from serving.local import orders as orders_module
from serving.local.endpoint import SOCKET_FILE, Endpoint, ask
from serving.local.glimpse import Glimpse
from serving.local.metrics import metrics
from serving.local.orders import Orders
from serving.local.page import Page, _host_is_ours
from serving.local.requests import MAX_REQUEST_BYTES, Answer, GetStatus, Label, Request, Resume, Rollback, Stop, parse
from serving.status import CaptureStatus, StatusFile
from serving.window import Totals
from tests.conftest import wait_for
from tests.test_robot_control import Robot
from tests.test_robot_daemon import START_S, Lab
from tests.test_robot_parts import frame_of, make_candidate

pytestmark = pytest.mark.alone  # measures time


def status(**state: Any) -> StatusFile:
    given = {"site": "lab", "robot": "r1", "session": "s", "online": True, "at": utc_now(), "mode": "driving", **state}
    return StatusFile(RobotState(**given), 1, 1, 0.25, "forward", 5.0, [], CaptureStatus())


# The socket


class Told:
    """In the place of the orders."""

    def __init__(self) -> None:
        self.heard: list[Request] = []

    def do(self, request: Request, by: str) -> Answer:
        self.heard.append(request)
        return Answer(ok=True, said=by, status=status())


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


# The page


@pytest.fixture
def glimpse() -> Iterator[Glimpse]:
    """With a camera at 100 frames a second."""
    made = Glimpse(30.0)
    ending = threading.Event()

    def offer() -> None:
        while not ending.wait(0.01):
            made.offer(Frame(frame_of(100), time.monotonic()))

    thread = threading.Thread(target=offer)
    thread.start()
    try:
        yield made
    finally:
        ending.set()
        thread.join()


@pytest.fixture
def page(glimpse: Glimpse) -> Iterator[Page]:
    made = Page(msgspec.structs.replace(PageSettings(), port=0), Told().do, status, Totals(), glimpse)
    made.start()
    try:
        yield made
    finally:
        made.close()


def request(page: Page, path: str, method: str = "GET", body: str = "", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=5)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, {"Host": f"127.0.0.1:{page.port}", **named})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_page_shows_and_obeys(page: Page) -> None:
    """Page, state, picture, metrics without a token on loopback; orders with the one that the page carries."""
    code, html = request(page, "/")
    assert code == 200
    assert page.token.encode() in html
    assert b"//" not in html.replace(b"http://127", b"").split(b"<script")[0], "nothing from elsewhere"
    assert json.loads(request(page, "/status")[1])["mode"] == "driving"
    assert request(page, "/frame.jpg")[1][:2] == b"\xff\xd8"
    assert b"jetloop_mode" in request(page, "/metrics")[1]
    code, answer = request(page, "/do", "POST", '{"do":"stop"}', Authorization=f"Bearer {page.token}")
    assert (code, json.loads(answer)["ok"]) == (200, True)


@pytest.mark.parametrize(
    ("path", "method", "headers", "code"),
    [
        ("/do", "POST", {}, 401),
        ("/do", "POST", {"Authorization": "Bearer "}, 401),
        ("/do", "GET", {}, 404),
        ("/status", "GET", {"Host": "evil.example"}, 421),
        ("/", "GET", {"Host": "127.0.0.1.evil.example:8420"}, 421),
        ("/", "GET", {"Host": "[::1"}, 421),
        ("/../robot.toml", "GET", {}, 404),
    ],
)
def test_what_the_page_refuses(page: Page, path: str, method: str, headers: dict[str, str], code: int) -> None:
    """Orders without the token (another site's page), names that only lead here (DNS rebinding), unknown paths."""
    assert request(page, path, method, '{"do":"stop"}' if method == "POST" else "", **headers)[0] == code


def test_bodies_are_bounded(page: Page) -> None:
    """Too long, or no request: 413, 400."""
    authorization = {"Authorization": f"Bearer {page.token}"}
    assert request(page, "/do", "POST", "x" * (MAX_REQUEST_BYTES + 1), **authorization)[0] == 413
    assert request(page, "/do", "POST", "x", **authorization)[0] == 400


def test_with_a_token_nothing_is_seen_without_it(glimpse: Glimpse) -> None:
    """As on another address than loopback; the page itself then holds neither token nor state."""
    told = PageSettings(token="0123456789abcdef")
    made = Page(msgspec.structs.replace(told, port=0), Told().do, status, Totals(), glimpse)
    made.start()
    try:
        assert b"0123456789abcdef" not in request(made, "/")[1]
        for path in ("/status", "/frame.jpg", "/metrics"):
            assert request(made, path)[0] == 401
            assert request(made, path, Authorization="Bearer 0123456789abcdef")[0] == 200
    finally:
        made.close()


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "192.168.1.7", "robot.lan"])
def test_an_open_page_asks_for_a_token(bind: str) -> None:
    """Refused where robot.toml is read."""
    with pytest.raises(msgspec.ValidationError, match="set `token` too"):
        msgspec.convert({"bind": bind}, PageSettings)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_host_header_is_judged(host: str) -> None:
    """Never an exception, and no name passes but ours."""
    _host_is_ours(host, {"localhost"})
    assert not _host_is_ours(f"{host}.example", {"localhost"})


def test_nobody_looking_costs_nothing(glimpse: Glimpse) -> None:
    """A frame is copied only when one was asked for; then it is the newest."""
    quiet = Glimpse(30.0)
    quiet.offer(Frame(frame_of(1), 0.0))
    assert quiet.pixels(0.01) is None
    pixels = glimpse.pixels(1.0)
    assert pixels is not None
    assert (pixels == 100).all()


def test_metrics_are_prometheus_text() -> None:
    """Every sample has its type; the histogram is cumulative; what is not measured is not there."""
    totals = Totals()
    for latency_ms in (1.0, 6.0, 1000.0):
        totals.add(latency_ms, blocked=True)
    text = metrics(status(release='a"b\\c\n'), totals)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {line.split("{")[0].split()[0].removesuffix("_bucket").removesuffix("_sum") for line in samples} - typed == {
        "jetloop_decision_latency_seconds_count"
    }
    assert 'release="a\\"b\\\\c\\n"' in text
    assert 'jetloop_decision_latency_seconds_bucket{le="0.01"} 2' in samples
    assert 'jetloop_decision_latency_seconds_bucket{le="+Inf"} 3' in samples
    assert "jetloop_temperature_celsius" not in text


# The whole daemon


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_the_commands_of_a_person(lab: Lab) -> None:
    """status, label, capture, stop over a kill -9 and a new start, resume: each by its command."""
    lab.publish(make_candidate(lab.folder / "first", "1"), 1)
    lab.configure(lab.serve())
    assert "no jetloop-robot runs" in lab.ask("stop").stderr
    lab.start()
    wait_for(lambda: lab.is_doing("driving"), START_S, f"driving ({lab.log})")
    for label in ("blocked", "free"):
        assert lab.ask("label", label).returncode == 0
    told = json.loads(lab.ask("status", "--json").stdout)
    assert (told["runs"], told["mode"], told["capture"]["blocked"]) == (True, "driving", 1)
    assert "stays here" in lab.ask("capture", "finish").stdout
    assert lab.ask("stop", "--text", "stairs").returncode == 0
    wait_for(lambda: lab.is_doing("stopped"), what="the state")
    assert lab.process is not None
    lab.process.kill()
    lab.process.wait(10)
    begun_s = time.monotonic()
    lab.start()
    wait_for(lambda: lab.is_doing("stopped"), START_S, "stopped after a restart")
    wait_for(lambda: "drives" in lab.log.read_text().split("booting with")[-1], START_S, "the engine")
    assert all(move[1:] == (0.0, 0.0) for move in lab.moves() if move.at_s > begun_s)
    assert "stairs" in lab.ask("status").stdout
    assert lab.ask("resume").stdout == "drives again\n"
    wait_for(lambda: lab.is_doing("driving"), START_S, "driving again")
    assert "no engine to go back to" in lab.ask("rollback").stderr
    assert lab.stop() < 2.0
    assert len(list((lab.folder / "state/captures").glob("*.zip"))) == 1
    assert "Traceback" not in lab.log.read_text()


def test_on_a_read_only_disk_it_drives_with_what_its_slots_hold(lab: Lab) -> None:
    """Boots, drives, keeps a second daemon away, says what is wrong, and obeys."""
    alone = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount; run it as root")
    lab.publish(make_candidate(lab.folder / "first", "1"), 1)
    lab.configure(lab.serve())
    lab.start()
    wait_for(lambda: lab.is_doing("driving"), START_S, f"driving ({lab.log})")
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
