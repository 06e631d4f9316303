"""A version whose engine a robot builds, through the release service's own states: waits, is ordered, goes on.

For `board-ort-fp32`, where ONNX Runtime stands in for TensorRT; MLflow is a file (tests/simulators/registry_file.py).
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipelines.release.builds import Builds
from pipelines.release.service import Service, Wanted
from serving import build_handin
from serving.build_engine import Limits
from serving.build_releases import build_all
from serving.config import (
    EngineSettings,
    HardwareSettings,
    MqttSettings,
    RepositorySettings,
    RobotConfig,
    RobotSettings,
)
from serving.contracts.releases import Passport
from serving.errors import RejectedError
from tests.build_lab import BOARD, serving
from tests.release_desk import TARGET, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path, max_latency_ms={TARGET: 2000.0, BOARD: 2000.0})
    return with_board(made)


def with_board(desk: Desk) -> Desk:
    """The same service for a target that is built here and one that is built on a board."""
    wanted = Wanted(("champion",), (TARGET, BOARD), lambda: desk.limits)
    builds = Builds(desk.folder)
    desk.service = Service(desk.registry, desk.repository, desk.records, wanted, desk.rung.append, builds)  # type: ignore[arg-type]
    return desk


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    with serving(desk.folder, Builds(desk.folder), lambda: desk.limits, lambda: None) as address:
        yield address


def robot(desk: Desk, url: str, name: str = "jetbot-1") -> RobotConfig:
    return RobotConfig(
        robot=RobotSettings(name=name, site="lab", state_dir=str(desk.folder.parent / name)),
        hardware=HardwareSettings(kind="simulated"),
        repository=RepositorySettings(url=url, root=str(desk.folder / "metadata" / "1.root.json"), timeout_s=5),
        mqtt=MqttSettings(host="127.0.0.1"),
        engine=EngineSettings(target=BOARD),
    )


def hand_in(desk: Desk, url: str) -> "list[str]":
    """What a person does on a board: a key once, then the command."""
    config = robot(desk, url)
    key = Path(config.robot.state_dir) / "builder.pem"
    (desk.folder / "builders").mkdir(exist_ok=True)
    (desk.folder / "builders" / "jetbot-1.pub").write_text(build_handin.new_key(key))
    return build_all(config, url, key, None, Limits(timeout_s=60))


def test_a_version_waits_for_its_board_and_is_then_released(desk: Desk, url: str) -> None:
    """Nothing is released meanwhile, the order is signed once, and the passport holds what the board measured."""
    version = desk.registry.add()
    for _ in range(3):
        desk.release(version)
    tags = desk.tags(version)
    assert tags["release.status"] not in ("released", "refused")
    assert f"waiting for a robot of kind {BOARD} to build it: `jetloop-robot build`" in tags["release.reason"]
    assert desk.channel() is None
    published = desk.repository.state.releases.signed.version
    with_board(desk).service.reconcile()
    assert desk.repository.state.releases.signed.version == published, "one order, however often it looks"

    assert len(hand_in(desk, url)) == 1
    desk.service.reconcile()
    assert desk.status(version) == "released"
    channel = desk.channel()
    assert channel is not None
    assert set(channel.passports) == {TARGET, BOARD}
    passport = msgspec.json.decode(desk.repository.read(channel.passports[BOARD]), type=Passport)
    assert passport.engine_key
    assert passport.engine_key.board == "board"
    assert passport.engine_key.onnx_sha256 == passport.lineage.onnx_sha256
    assert "onnxruntime" in passport.measured.machine
    assert not desk.repository.passport(channel.passports[TARGET]).engine_key


def test_another_version_of_the_same_network_needs_no_new_build(desk: Desk, url: str) -> None:
    """The engine is found by its ONNX file and golden frames: the alias comes back and nothing waits."""
    first = desk.registry.add()
    desk.release(first)
    hand_in(desk, url)
    desk.service.reconcile()
    desk.release(desk.registry.add())
    assert desk.channel().release_id.startswith("collision-avoidance-v1-")  # type: ignore[union-attr]
    desk.release(first)
    assert desk.status(first) == "released"


def test_a_build_over_the_limits_is_refused_and_the_version_keeps_waiting(desk: Desk, url: str) -> None:
    """The board is told why; a busy board may try again, and a better one may hand in."""
    version = desk.registry.add()
    desk.release(version)
    desk.limits = msgspec.structs.replace(desk.limits, max_latency_ms={TARGET: 2000.0, BOARD: 1e-6})
    with pytest.raises(RejectedError, match=r"does not take it: latency: .* > 1e-06 ms"):
        hand_in(desk, url)
    assert desk.channel() is None
