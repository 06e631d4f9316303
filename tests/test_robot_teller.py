"""What the daemon tells of itself: temperature, and to systemd that it lives only while its control loop turns."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import daemon as daemon_module
from serving import teller
from serving.config import EngineSettings, ShadowSettings
from serving.daemon import Daemon
from serving.hardware import sensors
from serving.watcher import Watcher
from tests.conftest import wait_for
from tests.test_robot_parts import TARGET, make_candidate


def test_a_jetsons_zone_without_a_sensor_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PMIC-Die reports 100 °C for ever; the hottest of the others is told."""
    for number, (kind, milli) in enumerate((("PMIC-Die", 100_000), ("CPU-therm", 41_500))):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(str(milli))
    found = sensors.hottest_zone_c
    monkeypatch.setattr(sensors, "hottest_zone_c", lambda: found(tmp_path))
    entries = {"thermal": [SimpleNamespace(current=100.0)]}
    monkeypatch.setattr(teller.psutil, "sensors_temperatures", lambda: entries)
    assert teller.hottest_c() == 41.5
    monkeypatch.setattr(sensors, "hottest_zone_c", lambda: None)
    assert teller.hottest_c() == 100.0


@pytest.mark.parametrize(("age_s", "petted"), [(0.0, True), (3.5, False)], ids=["turning", "hanging"])
def test_systemd_is_told_only_while_the_control_loop_turns(
    age_s: float, petted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop without a turn for 3 s is as good as none."""
    pets: list[float] = []
    steps: list[float] = []
    until = threading.Event()
    monkeypatch.setattr(daemon_module, "Watchdog", lambda: SimpleNamespace(pet=lambda: pets.append(time.monotonic())))
    running: Any = object.__new__(Daemon)
    running.start = lambda: None
    running.teller = SimpleNamespace(step=lambda: (steps.append(0.0), until.set() if len(steps) > 3 else None))
    running.control = SimpleNamespace(crashed=None, turned_s=time.monotonic() - age_s)
    running.probation = SimpleNamespace(ended_well=lambda: None)
    running.run(until)
    assert bool(pets) is petted


def test_a_shadow_that_holds_too_much_memory_is_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its worker is bounded as the one that drives is, and the cause is said."""
    watcher = Watcher(ShadowSettings(), EngineSettings(target=TARGET, max_memory_mb=1.0), tmp_path / "kept")
    candidate = make_candidate(tmp_path / "first")
    watcher.boot(candidate)
    watcher.start()
    passport: Any = SimpleNamespace(engine=SimpleNamespace(sha256="0" * 64), decision=candidate.passport.decision)
    frame: Any = SimpleNamespace(pixels=watcher._pixels, captured_at=time.monotonic())
    try:

        def failed() -> bool:
            watcher.offer(SimpleNamespace(passport=passport), frame, SimpleNamespace(p_blocked=0.5))  # type: ignore[arg-type]
            return "engine.max_memory_mb allows 1" in caplog.text

        wait_for(failed, what="the shadow's failure")
    finally:
        watcher.close()
