"""`python -m tests.bench.console`: the console with 1,000 robots, in Chromium: first view, update, the server's CPU.

The robots tell as real ones do: a state every 5 s, metrics every 10 s, an event now and then, through the store, as the
collector puts them there. Chromium shows the fleet and some more pages; pictures of them stay in build/screens.

    first view   from the request until the rows of the first page stand, a new browser tab each time
    update       from the commit of a robot's new state until the page shows it, the robot being on the page
    CPU          of the console's process while the pages are open
"""

import itertools
import json
import random
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
import psutil

from serving.command_line import run
from telemetry.store import Batch, Store, open_store
from tests.conftest import ROOT, answers, end, free_port, start, wait_for
from tests.servers.chromium import chromium
from tests.test_telemetry_samples import RELEASE, decision, event, release_service, state

OUT, SCREENS = Path("build/bench/console.json"), Path("build/screens")
RINGS = ("champion", "champion", "champion", "canary")
HISTORY = 40  # metrics of each robot that are stored before the console starts
STATE_S, METRICS_S = 5.0, 10.0
PROBED = 20  # robots whose states are told by the measurement alone, so that nothing covers them before they show
_BEFORE = RELEASE.replace("v3", "v2")


class Fleet:
    """Simulated robots that tell into a store."""

    def __init__(self, store: Store, robots: int) -> None:
        self.names = [f"jetbot-{number:04d}" for number in range(1, robots + 1)]
        self._store = store
        self._sequence = dict.fromkeys(self.names, 0)
        self._random = random.Random(1)
        self._writing = threading.Lock()

    def fill(self) -> None:
        """The past: metrics and events of each robot, and its state."""
        for round_ in range(HISTORY):
            ago_s = (HISTORY - round_) * METRICS_S
            self.add(events=[self.metrics(name, -ago_s) for name in self.names])
        kinds = ("avoidance.started", "avoidance.ended", "collision", "model.activated", "model.refused")
        some = [self.event(name, self._random.choice(kinds), -600 * self._random.random()) for name in self.names * 3]
        self.add(events=some, states=[self.state(name) for name in self.names])

    def run(self, stop: threading.Event) -> None:
        """The present, in ten ticks a second."""
        told = itertools.cycle(self.names[PROBED:])
        measured = itertools.cycle(self.names)
        each = len(self.names) / 10
        while not stop.wait(0.1):
            events = [self.metrics(name) for name in itertools.islice(measured, max(1, int(each / METRICS_S)))]
            if self._random.random() < 0.3:
                events.append(self.event(self._random.choice(self.names), "avoidance.started"))
            states = [self.state(name) for name in itertools.islice(told, max(1, int(each / STATE_S)))]
            self.add(events=events, states=states)

    def add(self, **what: Any) -> None:
        with self._writing:
            self._store.add(Batch(**what))

    def state(self, name: str, **changes: Any) -> Any:
        number = int(name[-4:])
        ring = RINGS[number % len(RINGS)]
        old = number % 7 == 0
        values = {
            **{"ring": ring, "temperature_c": 45 + 12 * self._random.random() + 30 * (number % 97 == 0)},
            **{"model_version": "2" if old else "3", "release": _BEFORE if old else RELEASE, "disk_free_mb": 5200.0},
            **{"uptime_s": 7000.0 + number, "online": number % 50 != 0, "mode": "driving"},
        }
        if number % 50 == 0:
            values |= {"mode": "offline", "reason": "connection lost"}
        return state(name, **{**values, **changes})

    def metrics(self, name: str, at_s: float = 0.0) -> Any:
        blocked = 0.2 + 0.1 * self._random.random()
        data = {
            **{"interval_s": METRICS_S, "decisions": 290, "decisions_per_s": 29.0, "blocked_rate": blocked},
            **{"latency_p50_ms": 8 + self._random.random(), "latency_p99_ms": 12 + 4 * self._random.random()},
        }
        return self.event(name, "metrics", at_s, data=data)

    def event(self, name: str, kind: str, at_s: float = 0.0, **changes: Any) -> Any:
        from tests.test_telemetry_samples import later

        self._sequence[name] += 1
        if kind == "model.refused":
            changes["data"] = {"release": _BEFORE, "reason": "parity error 0.31 is over its limit 0.01"}
        release = _BEFORE if int(name[-4:]) % 7 == 0 else RELEASE
        return event(self._sequence[name], kind, name, time=later(at_s), release=release, **changes)


_ROWS = "return document.querySelectorAll('table.robots tbody tr').length"


def first_view_s(browser: Any, address: str) -> float:
    """From the request until the table stands, in a new tab."""
    browser.switch_to.new_window("tab")
    began = time.monotonic()
    browser.get(address)
    wait_for(lambda: browser.execute_script(_ROWS) > 0, 30, "the robots on the page")
    return time.monotonic() - began


def update_s(browser: Any, fleet: Fleet, name: str, number: int) -> float:
    """From the commit of a state until the page shows it."""
    reason = f"probe {number}"
    fleet.add(states=[fleet.state(name, mode="standing", reason=reason)])
    began = time.monotonic()
    shown = f"return document.body.innerText.includes('{reason}')"
    wait_for(lambda: browser.execute_script(shown), 10, "the new state on the page")
    return time.monotonic() - began


def measure(folder: Path, robots: int, views: int, updates: int, screens: Path | None) -> dict[str, Any]:
    """Starts all of it, measures, and ends it."""
    url = f"sqlite:///{folder / 'events.db'}"
    fleet = Fleet(open_store(url), robots)
    fleet.fill()
    stop = threading.Event()
    telling = threading.Thread(target=fleet.run, args=(stop,), daemon=True)
    releases = [decision(), decision({}, release_id=_BEFORE, version="2", sequence=1, current=False)]
    with release_service(releases) as service, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "pipelines.cli", "console", "--store", url, "--releases", service]
        process = start([*command, "--port", str(port)], folder / "console.log", cwd=ROOT)
        browser = chromium(profile)
        try:
            wait_for(lambda: answers(f"{address}/healthz"), 60, f"the console ({folder / 'console.log'})")
            telling.start()
            seen_s = [first_view_s(browser, address) for _ in range(views)]
            console = psutil.Process(process.pid)
            used, began = sum(console.cpu_times()[:2]), time.monotonic()
            changed_s = [update_s(browser, fleet, fleet.names[at % PROBED], at) for at in range(updates)]
            cpu = (sum(console.cpu_times()[:2]) - used) / (time.monotonic() - began)
            if screens:
                keep_screens(browser, address, fleet, screens)
            page_bytes = len(urllib.request.urlopen(address).read())
            severe = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        finally:
            stop.set()
            browser.quit()
            end(process)
    return {
        **{"robots": robots, "open_pages": views, "page_bytes": page_bytes, "browser_errors": severe},
        **{"first_view_s": sorted(seen_s), "update_s": sorted(changed_s), "console_cpu_share_of_a_core": cpu},
    }


def keep_screens(browser: Any, address: str, fleet: Fleet, folder: Path) -> None:
    """Pictures of the pages, for people to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = fleet._store.recent(1, metrics=False)[0]["id"]
    pages = {"fleet": "/", "robot": "/robot/lab/jetbot-0002", "events": "/events", "releases": "/releases"}

    def show(path: str) -> None:
        """Opens a page and waits for its content: robots, or, of releases, what there is to say of them."""
        browser.get(address + path)
        wanted = "Releases" if path == "/releases" else "jetbot"
        wait_for(lambda: wanted in browser.find_element("tag name", "main").text, 20, f"{path} shown")

    for name, path in {
        **pages,
        "event": f"/event/{newest}",
        "search": "/events?type=collision&robot=jetbot-00",
    }.items():
        show(path)
        time.sleep(1.2)  # the first trends come with the second picture
        browser.save_screenshot(str(folder / f"console-{name}.png"))
    browser.execute_script("Quasar.Dark.set(true)")
    browser.save_screenshot(str(folder / "console-search-dark.png"))
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for name, path in pages.items():
        show(path)
        browser.save_screenshot(str(folder / f"console-{name}-phone.png"))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--robots", default=1000, help="Simulated robots.")
@click.option("--views", default=5, help="First views, each in a tab that stays open.")
@click.option("--updates", default=20, help="Updates waited for.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="The figures, as JSON.")
def command(robots: int, views: int, updates: int, out: Path) -> None:
    """Measure the console with 1,000 robots: first view (wanted: < 2 s), update (< 1 s), CPU.

    Reads nothing; writes build/bench/console.json and build/screens/console-*.png. Let nothing else run meanwhile.

    Example: python -m tests.bench.console --robots 1000
    """
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), robots, views, updates, SCREENS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")
    first, update = found["first_view_s"], found["update_s"]
    click.echo(f"{robots} robots, {views} pages open, {found['page_bytes'] / 1e3:.0f} KB a page")
    click.echo(f"first view   median {first[len(first) // 2]:.2f} s, worst {first[-1]:.2f} s   (wanted: under 2 s)")
    click.echo(f"update       median {update[len(update) // 2]:.2f} s, worst {update[-1]:.2f} s   (wanted: under 1 s)")
    click.echo(f"console CPU  {found['console_cpu_share_of_a_core']:.0%} of a core")
    click.echo(f"figures in {out}, pictures in {SCREENS}")


if __name__ == "__main__":
    run(command)
