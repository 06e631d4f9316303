"""What benchmarks are given in the tests: a few small sets, and weights by lot."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.bench.real_sets import simulate
from training.model import build_backbone


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(build_backbone("mobilenet_v3_small").state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three sets of two sources, made of simulated frames."""
    rows, pixels = simulate(3, 6)
    for number, (row, frame) in enumerate(zip(rows, pixels, strict=True)):
        name = ("anna_hall", "anna_loft", "ben_den")[number // 6]
        folder = tmp_path / "sets" / name / row.label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / f"{number}.jpg")
    return tmp_path / "sets"
