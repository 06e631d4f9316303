"""The bench of many images, with few: that it still makes a project in which `dvc repro` finds nothing to do."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, end, start, wait_for


def test_few_images_are_validated_packed_and_found_unchanged(tmp_path: Path) -> None:
    """Every step has its time and memory, for each size."""
    target = tmp_path / "scale.json"
    command = [sys.executable, "-m", "tests.bench.scale", "--images", "100,200", "--out", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert target.is_file(), done.stderr  # exit code 1 also says that this machine is slow today
    sizes = json.loads(target.read_text())["sizes"]
    assert [one["images"] for one in sizes] == [100, 200]
    for one in sizes:
        assert one["no_op_s"] > 0
        assert all(one[step]["s"] > 0 and one[step]["peak_gb"] > 0 for step in ("validate", "split", "pack"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_leaves_no_images_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """100,000 images take 18 GB."""
    folder = tmp_path / "bench"
    command = [sys.executable, "-m", "tests.bench.scale", "--images", "2000", "--out", str(folder / "scale.json")]
    process = start(command, tmp_path / "log", cwd=ROOT)

    def validating() -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):  # one of them, such as git, may just be ending
            children = psutil.Process(process.pid).children()
            return [child for child in children if "pipelines.validate" in child.cmdline()]
        return []

    try:
        wait_for(validating, 120, "validating")
        children = validating()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        end(process)
    assert list(folder.iterdir()) == []
    assert not any(child.is_running() for child in children)
