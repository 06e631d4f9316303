"""The console's page of one event with the training images like a frame, and the keyboard, in a real browser."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipelines import nearest as indexing
from telemetry.console.actions import NEAREST
from telemetry.store import Batch, open_store
from tests.conftest import wait_for
from tests.test_telemetry_console import (  # noqa: F401
    CONSOLE,
    Console,
    _shows,
    _text,
    browser,
    console,
)
from tests.test_telemetry_samples import decision, event, passport, release_service, state
from tests.test_telemetry_trace_nearest import SESSIONS, _frame_of, _split, model  # noqa: F401


def test_a_frame_shows_the_training_images_like_it(
    console: Console,
    browser: Any,
    model: bytes,
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A frame given on an event's page shows the nearest training images, itself first, each drawn and with its
    command; what is no picture is refused on the page."""
    from mlflow import MlflowClient

    from training.tracking import Run, RunFile

    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment(f"page-{tmp_path.name}")).info.run_id
    split, images = _split(tmp_path)
    (tmp_path / "model.onnx").write_bytes(model)
    client.log_artifact(run, str(tmp_path / "model.onnx"), "export")
    tracked = Run(client, RunFile(run_id=run, tracking_uri=mlflow_server, experiment="e"))
    indexing.add_index(tracked, tmp_path / "model.onnx", SESSIONS, split)
    lineage = msgspec.structs.replace(passport(run_id=run).lineage, onnx_sha256=hashlib.sha256(model).hexdigest())
    entry = decision({"cpu-ort-fp32": msgspec.structs.replace(passport(), lineage=lineage)})

    url, one = f"sqlite:///{tmp_path / 'events.db'}", event()
    open_store(url).add(Batch(events=[one]))
    (tmp_path / "frame.png").write_bytes(_frame_of(images[4]))
    (tmp_path / "no-picture.png").write_bytes(b"not a picture")
    monkeypatch.setattr("tests.test_telemetry_console.CONSOLE", [*CONSOLE, "--mlflow", mlflow_server])
    with release_service([entry]) as service:
        address = console(url, service)

        def give(name: str) -> None:
            browser.get(f"{address}/event/{one.id}")
            _shows(browser, "Nearest training images")
            browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / name))
            browser.find_element("css selector", "form[enctype] button").click()

        give("frame.png")
        _shows(browser, images[4], "of 12 indexed of 12 training images", "dvc get", timeout_s=30)
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('.nearest img')].map(one => one.complete && one.naturalWidth > 0)"
        )
        assert drawn == [True] * NEAREST
        first = browser.find_elements("css selector", ".nearest figure")[0].text
        assert images[4] in first
        assert "1.000" in first
        give("no-picture.png")
        _shows(browser, "Back to the event", "picture")


def test_the_keyboard_does_what_the_manual_says(console: Console, browser: Any, tmp_path: Path) -> None:
    """`/` goes to the filter and Escape leaves it; j, k and the arrows go through the rows; Enter opens."""
    from selenium.webdriver.common.keys import Keys

    url = f"sqlite:///{tmp_path / 'events.db'}"
    names = [f"jetbot-{at}" for at in range(1, 5)]
    open_store(url).add(Batch(states=[state(name) for name in names]))
    with release_service([decision()]) as service:
        address = console(url, service)
        browser.get(address)
        _shows(browser, *names)

        def press(*keys: str) -> None:
            for key in keys:
                browser.switch_to.active_element.send_keys(key)

        def focused() -> str:
            return str(browser.execute_script("return document.activeElement.textContent.trim()"))

        press("j")
        wait_for(lambda: focused() == names[0], what="j on the first row")
        press("j", "j", Keys.ARROW_DOWN, "j")  # the last row holds it
        wait_for(lambda: focused() == names[3], what="the last row")
        press("k", Keys.ARROW_UP)
        wait_for(lambda: focused() == names[1], what="two rows up")
        press("/")
        active = "return document.activeElement.id"
        wait_for(lambda: browser.execute_script(active) == "search", what="the cursor in the filter")
        press("jetbot-3", Keys.ESCAPE)  # letters are typed there, not taken as keys
        wait_for(lambda: names[0] not in _text(browser) and names[2] in _text(browser), what="one robot shown")
        assert browser.execute_script(active) != "search"
        press("j", Keys.ENTER)
        wait_for(lambda: browser.current_url.endswith("/robot/lab/jetbot-3"), what="the robot's page")
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
