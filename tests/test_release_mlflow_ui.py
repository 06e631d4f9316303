"""A person sets an alias in MLflow's own page, in a real browser; the robot drives with it, and the page says so."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import preprocess
from serving.config import EngineSettings, RepositorySettings
from serving.engine.check import check
from serving.engine.client import Engine
from serving.slots import Candidate, Slots
from serving.updater import Updater
from tests.conftest import ROOT, wait_for
from tests.servers.chromium import opened
from tests.test_release_service import TARGET, Lab

pytestmark = pytest.mark.alone  # MLflow, a browser, the service and an engine at once

SCREENS = ROOT / "build" / "screens"
SETTINGS = EngineSettings(max_latency_ms=10_000.0, max_latency_ratio=1e6)  # what is proved here is not speed


@pytest.fixture
def lab(mlflow_server: str, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(mlflow_server, tmp_path)
    try:
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def browser() -> Iterator[Any]:
    with opened("1600,1100") as chrome:
        yield chrome


class Page:
    """MLflow's page of one registered model, as a person uses it."""

    def __init__(self, browser: Any, lab: Lab) -> None:
        self._browser = browser
        browser.get(f"{lab.uri}/#/models/{lab.model}")

    def row(self, version: str) -> Any:
        """The line of one version in the table."""
        from selenium.webdriver.common.by import By

        place = f"//a[normalize-space()='Version {version}']/ancestor::*[@role='row'][1]"
        wait_for(lambda: self._browser.find_elements(By.XPATH, place), 30, what=f"version {version} on the page")
        return self._browser.find_element(By.XPATH, place)

    def set_alias(self, version: str, alias: str) -> None:
        """`Add` in the column of aliases, the name, Enter, `Save aliases`."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.row(version).find_element(By.XPATH, ".//button[normalize-space()='Add']").click()
        dialog = "//*[@role='dialog']"
        wait_for(lambda: self._browser.find_elements(By.XPATH, f"{dialog}//input"), 10, what="the dialog")
        field = self._browser.find_element(By.XPATH, f"{dialog}//input")
        field.send_keys(alias)
        field.send_keys(Keys.ENTER)
        self._browser.find_element(By.XPATH, f"{dialog}//button[normalize-space()='Save aliases']").click()

    def says(self, version: str, *texts: str) -> None:
        """Waits until the line of a version shows the texts; a person presses reload meanwhile."""

        def shows() -> bool:
            self._browser.refresh()
            words = " ".join(self.row(version).text.split())
            return all(text in words for text in texts)

        wait_for(shows, 30, what=f"{texts} in the line of version {version}")

    def photograph(self, name: str) -> None:
        SCREENS.mkdir(parents=True, exist_ok=True)
        self._browser.save_screenshot(str(SCREENS / name))


class Robot:
    """One robot's updater, and a real engine that it drives with."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.decided: list[str] = []  # versions, each when its engine made its first decision
        self._engine: Engine | None = None
        slots = Slots(folder / "slots")
        root = lab.release / "metadata" / "root.json"
        repository = RepositorySettings(url=lab.url, root=str(root), poll_s=0.2)
        self._updater = Updater(
            repository, TARGET, "champion", slots, self._activate, lambda *refusal: pytest.fail(str(refusal))
        )

    def __enter__(self) -> "Robot":
        self._updater.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._updater.stop()
        if self._engine:
            self._engine.close()

    def _activate(self, candidate: Candidate) -> None:
        engine = Engine(candidate.engine, SETTINGS)
        check(engine, candidate.passport, candidate.golden, SETTINGS)
        assert engine.infer(np.full(preprocess.FRAME_SHAPE, 128, np.uint8), 5.0).shape == (2,)
        if self._engine:
            self._engine.close()
        self._engine = engine
        self.decided.append(candidate.passport.lineage.model_version)


def test_an_alias_set_in_the_page_is_driven_with(lab: Lab, browser: Any, tmp_path: Path) -> None:
    """Two clicks and a name: the robot decides with that version, and its line in MLflow says that it is released."""
    first, second = lab.version(), lab.version()
    lab.serve()
    lab.ready()
    page = Page(browser, lab)
    with Robot(lab, tmp_path) as robot:
        for number, version in enumerate((first, second), start=1):
            page.set_alias(version, "champion")
            wait_for(lambda: "champion" in lab.client.get_registered_model(lab.model).aliases, 15, what="the alias")
            begun_s = time.monotonic()
            wait_for(lambda number=number: len(robot.decided) == number, 30, what=f"the robot ({lab.said()})")  # type: ignore[misc]
            print(f"alias in the page to first decision: {time.monotonic() - begun_s:.2f} s")
            page.says(version, "@ champion", "release.status : released")
            page.photograph(f"mlflow-alias-{number}.png")
    assert robot.decided == [first, second]
    assert lab.tags(first)["release.status"] == "released"
    assert "**Released** on `champion`" in lab.client.get_model_version(lab.model, second).description
