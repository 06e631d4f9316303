"""The robot's own page: what it shows, what it lets through, the picture, the metrics."""

import http.client
import json
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import PageSettings
from serving.hardware.base import Frame
from serving.local.glimpse import Glimpse
from serving.local.metrics import metrics
from serving.local.page import Page, _host_is_ours
from serving.local.requests import MAX_REQUEST_BYTES
from serving.window import Totals
from tests.robot_lab import Told, status
from tests.test_robot_parts import frame_of


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
