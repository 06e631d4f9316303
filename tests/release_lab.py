"""A release folder, a registered model and a release service as people run it, for the tests of that service.

A test file that uses the fixtures names them: `lab = release_lab.lab`.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tuf.ngclient import Updater

from pipelines.cli import main
from pipelines.release import webhook
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.contracts.releases import Channel
from tests.conftest import ROOT, answers, end, free_port, start, wait_for
from tests.simulators.promotions import register

TARGET = "cpu-ort-fp32"
NOBODY = "http://127.0.0.1:9/nobody"
NEVER_S = 3600.0  # so long a poll never comes in a test: what happens came by webhook

PARAMS = """
gates:
  min_balanced_accuracy: {accuracy}
  min_blocked_recall: 0.85
  max_parity_error: 0.01
  max_latency_ms:
    cpu-ort-fp32: 2000
"""


class Lab:
    """One release folder, one registered model of its own, one service at a time."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.folder = folder
        self.release = folder / "release"
        self.model = f"release-test-{uuid.uuid4().hex[:8]}"
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.params = folder / "params.yaml"
        self.params.write_text(PARAMS.format(accuracy=0.8))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._seed = 0
        keys = Keys.generate()
        keys.save(self.release / "keys")
        Repository.create(self.release, keys)

    def command(self, *options: str) -> list[str]:
        return [
            *("release", "serve", "--folder", str(self.release), "--tracking-uri", self.uri, "--model", self.model),
            *("--params", str(self.params), "--port", str(self.port), *options),
        ]

    def serve(
        self,
        *options: str,
        poll_s: float = 0.2,
        program: tuple[str, ...] = ("-m", "pipelines.cli"),
        environment: dict[str, str] | None = None,
    ) -> None:
        command = [sys.executable, *program, *self.command("--poll-s", str(poll_s), *options)]
        self.process = start(command, self.log, cwd=ROOT, env=os.environ | (environment or {}))

    def ready(self) -> None:
        wait_for(lambda: answers(f"{self.url}/healthz"), timeout_s=60, what=f"the service ({self.said()})")

    def edit_params(self, text: str) -> None:
        """In one step: the service reads the file when it likes."""
        draft = self.params.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.params)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def stop(self) -> None:
        if self.process:
            end(self.process)
            self.process = None

    def version(self, **kwargs: Any) -> str:
        self._seed += 1
        return register(self.uri, self.model, self.folder, seed=self._seed, **kwargs)

    def promote(self, version: str, alias: str = "champion") -> None:
        self.client.set_registered_model_alias(self.model, alias, version)

    def tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.model, version).tags)

    def wait_for_status(self, version: str, status: str) -> None:
        wait_for(
            lambda: self.tags(version).get("release.status") == status, timeout_s=60, what=f"{status} ({self.said()})"
        )

    def channel(self, name: str = "champion") -> Channel | None:
        return Repository.open(self.release, Keys({})).channel(name)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def pull(self, path: str) -> bytes:
        """As a robot does, through the service's HTTP."""
        client = self.folder / "client"
        client.mkdir(exist_ok=True)
        root = (self.release / "metadata" / "root.json").read_bytes()
        updater = Updater(str(client), f"{self.url}/metadata/", str(client), f"{self.url}/targets/", bootstrap=root)
        found = updater.get_targetinfo(path)
        assert found, path
        return Path(updater.download_target(found)).read_bytes()


def post(url: str, headers: dict[str, str], body: bytes) -> int:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as problem:
        return problem.code


def delivery(secret: str, body: bytes, age_s: int = 0, delivery_id: str = "d1") -> dict[str, str]:
    """Headers as MLflow sends them with a body."""
    stamp = str(int(time.time()) - age_s)
    return {
        webhook.SIGNATURE_HEADER: webhook.sign(secret, delivery_id, stamp, body),
        webhook.DELIVERY_ID_HEADER: delivery_id,
        webhook.TIMESTAMP_HEADER: stamp,
    }


def announced(model: str, version: str = "", alias: str = "champion") -> bytes:
    """Body of the delivery that says that an alias was set."""
    data = {"name": model, "alias": alias, "version": version}
    return json.dumps({"entity": "model_version_alias", "action": "created", "data": data}).encode()


@pytest.fixture
def lab(mlflow_server: str, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(mlflow_server, tmp_path)
    yield lab
    lab.stop()
    for hook in lab.client.list_webhooks():
        if hook.url.startswith((lab.url, NOBODY)):
            lab.client.delete_webhook(hook.webhook_id)


Jetloop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jetloop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Jetloop:
    """The program `jetloop` in this process: arguments -> exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jetloop", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run
