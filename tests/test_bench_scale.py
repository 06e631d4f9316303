"""The bench of many images, with few: that it still makes a project in which `dvc repro` finds nothing to do."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
