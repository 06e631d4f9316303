"""What the tests of building on a board share: a signed repository and the service's routes, behind real HTTP."""

import contextlib
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from pipelines.params import GateParams
from pipelines.release.builds import Builds, WaitingForBuild
from pipelines.release.builds_web import build_routes
from pipelines.release.built import Golden
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from pipelines.release.web import SignedFiles
from serving.config import (
    EngineSettings,
    HardwareSettings,
    MqttSettings,
    RepositorySettings,
    RobotConfig,
    RobotSettings,
)
from tests.conftest import free_port, listens, wait_for
from tests.test_robot_parts import BRIGHT, DARK, frame_of, logits_for, write_network

BOARD, NANO, RTX = "board-ort-fp32", "jetson-nano-trt8.2-fp16", "rtx-sm86-trtrtx1.7-fp16"
RELEASE = "collision-avoidance-v1-0123abcd"
LEVELS = (BRIGHT, DARK, 128)


def golden_of(shift: float = 0.0) -> Golden:
    """Golden frames of the tests' tiny network; `shift` makes its logits wrong."""
    frames = np.stack([frame_of(level) for level in LEVELS])
    logits = np.stack([logits_for(level) for level in LEVELS]) + np.float32(shift)
    content = io.BytesIO()
    np.savez(content, frames=frames, logits=logits)
    return Golden(frames, logits, content.getvalue())


def network(folder: Path, **changes: object) -> bytes:
    """An ONNX file whose logits are those of `golden_of()`."""
    write_network(folder / "network.onnx", **changes)  # type: ignore[arg-type]
    return (folder / "network.onnx").read_bytes()


class Lab:
    """The release service as far as building goes, and the settings of one robot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.release = folder / "release"
        self.repository = Repository.create(self.release, Keys.generate())
        self.builds = Builds(self.release)
        self.limits = GateParams(
            min_balanced_accuracy=0.8,
            min_blocked_recall=0.8,
            max_parity_error=0.01,
            max_latency_ms=dict.fromkeys((BOARD, NANO, RTX), 5000.0),
        )
        self.woken = 0
        self.url, self.port = "", 0

    def _wake(self) -> None:
        self.woken += 1

    def ask(self, target: str, onnx: bytes, golden: Golden, prebuilt: bytes | None = None) -> None:
        """What the service does when a version waits for a build."""
        files = self.builds.request(RELEASE, WaitingForBuild(target, onnx, golden, prebuilt))
        self.repository.publish(files)

    def robot(self, target: str = BOARD, name: str = "jetbot-1", python: str = "") -> RobotConfig:
        return RobotConfig(
            robot=RobotSettings(name=name, site="lab", state_dir=str(self.folder / name)),
            hardware=HardwareSettings(kind="simulated"),
            repository=RepositorySettings(
                url=self.url, root=str(self.release / "metadata" / "1.root.json"), timeout_s=5
            ),
            mqtt=MqttSettings(host="127.0.0.1"),
            engine=EngineSettings(target=target, python=python),
        )

    def know(self, name: str, public_pem: str) -> None:
        (self.release / "builders").mkdir(exist_ok=True)
        (self.release / "builders" / f"{name}.pub").write_text(public_pem)


@contextlib.contextmanager
def made_lab(folder: Path) -> Iterator[Lab]:
    lab = Lab(folder)
    with serving(lab.release, lab.builds, lambda: lab.limits, lab._wake) as lab.url:
        lab.port = int(lab.url.rsplit(":", 1)[1])
        yield lab


@contextlib.contextmanager
def serving(folder: Path, builds: Builds, limits: Callable[[], GateParams], wake: Callable[[], None]) -> Iterator[str]:
    """Serves a release folder as `jetloop release serve` does, as far as building goes; the URL."""
    port = free_port()
    app = Starlette(
        routes=[
            *build_routes(builds, limits, wake),
            Mount("/metadata", SignedFiles(directory=folder / "metadata")),
            Mount("/targets", SignedFiles(directory=folder / "targets")),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: listens(port), what="the release service listening")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def toml_of(config: RobotConfig) -> str:
    """robot.toml of a robot of the lab."""
    parts = msgspec.to_builtins(config)
    wanted = {
        "robot": ("name", "site", "state_dir"),
        "hardware": ("kind",),
        "repository": ("url", "root"),
        "mqtt": ("host",),
        "engine": ("target", "python"),
    }
    lines = []
    for table, keys in wanted.items():
        lines += [f"[{table}]", *(f'{key} = "{parts[table][key]}"' for key in keys)]
    return "\n".join(lines) + "\n"
