"""The console as a process, in a real browser."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.console import events_page, fleet, html
from telemetry.console.feed import Picture
from telemetry.store import Batch, Rejected, Store, open_store
from tests.conftest import ROOT, answers, end, free_port, start, wait_for
from tests.servers.chromium import opened
from tests.test_telemetry_samples import ENGINE, decision, event, release_service, state

CONSOLE = [sys.executable, "-m", "pipelines.cli", "console"]
Console = Callable[[str, str], str]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    """Starts consoles: (store URL, address of the release service) -> address of the console."""
    running = []

    def begin(store: str, releases: str) -> str:
        port = free_port()
        command = [*CONSOLE, "--store", store, "--releases", releases, "--port", str(port)]
        running.append(start(command, tmp_path / "console.log", cwd=ROOT))
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{address}/healthz"), timeout_s=60, what=f"the console ({tmp_path / 'console.log'})")
        return address

    try:
        yield begin
    finally:
        for process in running:
            end(process)
    assert [process.returncode for process in running] == [0] * len(running)
    assert "Traceback" not in (tmp_path / "console.log").read_text()


@pytest.fixture
def browser() -> Iterator[Any]:
    with opened() as chrome:
        yield chrome


def _text(browser: Any) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def _shows(browser: Any, *texts: str, timeout_s: float = 15) -> None:
    wait_for(lambda: all(text in _text(browser) for text in texts), timeout_s, what=f"{texts} on the page")


def _store(tmp_path: Path) -> tuple[str, Store]:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    return url, open_store(url)


def test_robots_events_releases_and_an_origin(console: Console, browser: Any, tmp_path: Path) -> None:
    """A person sees the robots, new events within a second or so, the releases, and where an event comes from."""
    url, store = _store(tmp_path)
    first = event(1, data={"p_blocked": 0.931})
    metrics = event(2, "metrics", data={"decisions_per_s": 29.64, "latency_p99_ms": 6.21})
    evil = Rejected("jetloop/v1/x", b"{", "<img src=x onerror=document.title='evil'>")
    store.add(Batch(events=[first, metrics], states=[state()], rejected=[evil]))
    with release_service([decision()]) as service:
        address = console(url, service)
        browser.get(address)
        _shows(browser, "jetbot-1", "driving", "v3", "6.2 ms", "collision", "1 of 1", "v3 on champion")
        assert browser.title == "jetloop"

        store.add(Batch(events=[event(3, "intervention")], states=[state(mode="standing", reason="no frames")]))
        _shows(browser, "intervention", "standing", "no frames", timeout_s=5)

        browser.get(f"{address}/events?type=all")
        _shows(browser, "collision", "metrics", "decisions_per_s 29.64")
        browser.get(f"{address}/events")
        _shows(browser, "collision", "intervention", "<img src=x")
        assert browser.title == "jetloop"  # what a robot sends is text, never markup

        browser.get(f"{address}/releases")
        _shows(browser, "champion", "v3", "released", "current, on 1 of 1 robots", "balanced_accuracy 0.941")

        browser.get(f"{address}/event/{first.id}")
        _shows(browser, first.id, "p_blocked", "0.931", ENGINE, "git checkout " + "4bb1f0c2" * 5, "data/sessions")

        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded
        assert all(name.startswith((address, "data:", "blob:")) for name in loaded)
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_nothing_there_yet_says_what_to_do(console: Console, browser: Any, tmp_path: Path) -> None:
    """Without a store or a release service the page says which command makes them, and fills when they come."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    address = console(url, f"http://127.0.0.1:{free_port()}")
    browser.get(address)
    _shows(browser, "there is no store", "jetloop collector --store", "jetloop release serve", "trouble")
    assert "0 of 0" not in _text(browser)  # a zero would pass for a reading
    store = open_store(url)
    _shows(browser, "No robot has reported yet", "No events yet")
    store.add(Batch(states=[state()]))
    _shows(browser, "jetbot-1", "driving")
    browser.get(f"{address}/event/00000000")
    _shows(browser, "no event `00000000`")


def test_a_phone_needs_no_sideways_scrolling(console: Console, browser: Any, tmp_path: Path) -> None:
    """At the width of a phone nothing sticks out, in the light or the dark."""
    url, store = _store(tmp_path)
    one = event(1, data={"why": "x" * 200, "other": "word " * 40})
    store.add(Batch(events=[one], states=[state(reason="y" * 150)]))
    with release_service([decision(), decision({}, status="refused", reason="z" * 180)]) as service:
        address = console(url, service)
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for path, text in {
            "/": "jetbot-1",
            "/events": "collision",
            f"/event/{one.id}": "data",
            "/releases": "zz",
        }.items():
            browser.get(address + path)
            _shows(browser, text)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, path
        light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        browser.find_element("css selector", ".dark-toggle").click()
        wait_for(
            lambda: browser.execute_script("return getComputedStyle(document.body).backgroundColor") != light,
            what="the dark page",
        )


def test_port_taken_is_one_line(console: Console, tmp_path: Path) -> None:
    """A second console on the port ends with one line that says what to do."""
    url, _ = _store(tmp_path)
    port = console(url, "http://127.0.0.1:1").rsplit(":", 1)[1]
    done = subprocess.run([*CONSOLE, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1


def test_markup_escapes_everything(tmp_path: Path) -> None:
    """No name, reason or value of a robot or a release can become markup."""
    _, store = _store(tmp_path)
    evil = "<script>alert(1)</script>"
    store.add(
        Batch(
            events=[event(1, data={evil: evil}, release=evil)],
            states=[state(mode=evil, reason=evil, release=evil, model_version=evil, target=evil)],
            rejected=[Rejected(evil, b"", evil)],
        )
    )
    picture = Picture(robots=store.robots(), events=store.recent(), rejected=store.rejected())
    shown = (
        fleet.line(picture.robots[0], picture, {})
        + events_page.events(picture.events)
        + events_page.rejected(picture.rejected)
        + events_page.facts(picture.events[0])
        + events_page.form({"text": evil, "robot": evil, "type": evil})
        + html.problem(evil)
    )
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_details_name_only_what_has_a_value() -> None:
    """A robot's first model replaces none: no 'from' and no gap; a nought is a value."""
    line = html.details({"from": "", "to": "v2", "gap_ms": None, "latency_p50_ms": 0, "ok": False})
    assert line == '<span class="details">to v2, latency_p50_ms 0, ok False</span>'
    assert html.details({"from": ""}) == html.DASH
