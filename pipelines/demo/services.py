"""The table of the demo's processes: who they are, how each is started, when it is ready, where a person finds it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.demo.processes import Program, free_ports, http_ready, port_ready

SITE = "lab"
ROBOT = "jetbot-1"
TARGET = "cpu-ort-fp32"

ROBOT_TOML = """\
# Written by `jetloop demo`. `jetloop-robot example-config` explains every key.
metrics_interval_s = 2.0

[robot]
name = "{robot}"
site = "{site}"
state_dir = "{state}"

[hardware]
kind = "simulated"
options = {{ seed = {seed}, site = {lab}, fps = 20.0 }}

[repository]
url = "{repository}"
root = "{root}"
poll_s = 5.0

[mqtt]
host = "127.0.0.1"
port = {mqtt_port}

[engine]
target = "{target}"
"""


@dataclass(frozen=True)
class House:
    """Folders and addresses of one demo."""

    folder: Path
    mlflow_port: int
    mqtt_port: int
    release_port: int
    console_port: int

    @classmethod
    def plan(cls, folder: Path) -> "House":
        return cls(folder, *free_ports(4))

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    @property
    def robot_config(self) -> Path:
        return self.folder / "robot" / "robot.toml"

    @property
    def robot_state(self) -> Path:
        return self.folder / "robot" / "state"

    @property
    def recorder(self) -> Path:
        return self.robot_state / "decisions.csv"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'events.db'}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def release_url(self) -> str:
        return f"http://127.0.0.1:{self.release_port}"

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    def write_robot_config(self, seed: int, lab: int) -> None:
        self.robot_config.parent.mkdir(parents=True, exist_ok=True)
        self.robot_config.write_text(
            ROBOT_TOML.format(
                robot=ROBOT,
                site=SITE,
                state=self.robot_state,
                seed=seed,
                lab=lab,
                repository=self.release_url,
                root=self.releases / "metadata" / "root.json",
                mqtt_port=self.mqtt_port,
                target=TARGET,
            )
        )

    def jetloop(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", *arguments]

    def programs(self) -> list[Program]:
        """In the order they are started; the robot is apart, since it is stopped before the rest."""
        broker = f"127.0.0.1:{self.mqtt_port}"
        return [
            Program(
                "mlflow",
                self.jetloop("mlflow", "--port", str(self.mlflow_port), "--folder", str(self.folder / "mlflow")),
                http_ready(f"{self.mlflow_url}/health"),
                self.mlflow_url,
            ),
            Program(
                "broker",
                self.jetloop("broker", "--port", str(self.mqtt_port)),
                port_ready(self.mqtt_port),
                f"mqtt://{broker}",
            ),
            Program(
                "collector",
                self.jetloop("collector", "--mqtt", broker, "--store", self.store),
                (self.folder / "events.db").exists,
            ),
            Program(
                "releases",
                self.jetloop(
                    *("release", "serve", "--folder", str(self.releases), "--tracking-uri", self.mlflow_url),
                    *("--params", str(self.workspace / "params.yaml"), "--target", TARGET, "--mqtt", broker),
                    *("--port", str(self.release_port)),
                ),
                http_ready(f"{self.release_url}/healthz"),
                self.release_url,
            ),
            Program(
                "console",
                self.jetloop(
                    *("console", "--store", self.store, "--releases", self.release_url),
                    *("--mlflow", self.mlflow_url, "--port", str(self.console_port)),
                ),
                http_ready(self.console_url),
                self.console_url,
            ),
        ]

    def robot(self) -> Program:
        return Program(
            "robot",
            [sys.executable, "-m", "serving.cli", "run", "--config", str(self.robot_config)],
            (self.robot_state / "status.json").exists,
        )
