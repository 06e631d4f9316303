"""Peak memory of a process that runs an engine."""

from pathlib import Path

import pytest

from pipelines.release.memory import peak_memory_mb
from serving.errors import RejectedError
from tests.release_desk import TARGET, Desk
from tests.simulators.promotions import tiny_onnx


def test_it_is_measured_in_a_process_of_its_own() -> None:
    """Of the size of an interpreter with its libraries; nothing for a target that cannot run here."""
    peak = peak_memory_mb(tiny_onnx(), TARGET)
    assert peak is not None
    assert 20 < peak < 1000
    assert peak_memory_mb(tiny_onnx(), "jetson-nano-trt8.2-fp16") is None
    with pytest.raises(RejectedError, match="fails"):
        peak_memory_mb(b"no network", TARGET)


def test_a_hungry_engine_is_refused(tmp_path: Path) -> None:
    """The gate is asked where params.yaml names the target, and its value is in the tag."""
    desk = Desk(tmp_path, max_memory_mb={TARGET: 1.0}, max_engine_mb={TARGET: 10.0})
    version = desk.registry.add()
    desk.release(version)
    assert desk.status(version) == "refused"
    assert "> 1 MB at the peak" in desk.tags(version)[f"gate.memory.{TARGET}"]
    assert desk.tags(version)[f"gate.size.{TARGET}"].startswith("pass")
