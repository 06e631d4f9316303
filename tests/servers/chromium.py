"""Headless Chromium, driven by ChromeDriver."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.conftest import need


def chromium(profile: str, size: str = "1280,900") -> Any:
    """A browser with a profile folder of its own, and a console whose lines can be read; the caller quits it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = need("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    for flag in ("--disable-background-networking", f"--user-data-dir={profile}", f"--window-size={size}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(need("chromedriver")))


@contextlib.contextmanager
def opened(size: str = "1280,900") -> Iterator[Any]:
    """A browser until the block ends; its profile goes with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chrome = chromium(profile, size)
        try:
            yield chrome
        finally:
            chrome.quit()
