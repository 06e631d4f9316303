"""The release service as people run it: a process between a real MLflow server, a real broker and robots."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.subscribe
import pytest
from mlflow import MlflowClient
from tuf.ngclient import Updater

from pipelines.cli import main
from pipelines.release import webhook
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.contracts.releases import Channel, Passport, Wakeup
from tests.conftest import ROOT, Address, answers, end, free_port, start, wait_for
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

# `jetloop release serve`, killed before the n-th file is renamed into place, counting from the first publication.
KILLED_AT = """
import os, signal, sys
kill_at, real, seen = int(os.environ["KILL_AT"]), os.replace, []
def replace(source, target):
    if "/targets/" in str(target) or seen:
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(target)
    real(source, target)
os.replace = replace
from pipelines.cli import main
main()
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


def test_an_alias_becomes_a_release_a_refusal_and_a_way_back(lab: Lab, mosquitto: Address) -> None:
    """By webhook alone: a good version is signed and rung for, a bad one refused in words, going back builds none."""
    first = lab.version(description="Trained on the new corridor.")
    lab.serve("--mqtt", f"{mosquitto.host}:{mosquitto.port}", poll_s=NEVER_S)
    lab.ready()
    wait_for(lambda: lab.get("/healthz")["webhook"], timeout_s=60, what=f"the webhook ({lab.said()})")

    begun = time.monotonic()
    lab.promote(first)
    wait_for(lambda: lab.channel(), timeout_s=30, what=f"the release ({lab.said()})")
    seconds = time.monotonic() - begun
    print(f"alias to published: {seconds:.2f} s")
    lab.wait_for_status(first, "released")

    # What a robot gets
    channel = msgspec.json.decode(lab.pull("channels/champion.json"), type=Channel)
    passport = msgspec.json.decode(lab.pull(channel.passports[TARGET]), type=Passport)
    assert (channel.model_version, channel.sequence, passport.release_id) == (first, 1, channel.release_id)
    assert len(lab.pull(passport.engine.path)) == passport.engine.bytes
    assert lab.pull(passport.golden.path)[:2] == b"PK"
    assert passport.lineage.data == {"data/sessions": "d41d8cd98f00b204e9800998ecf8427e.dir"}
    assert (passport.decision.blocked_threshold, passport.approver) == (0.4, "mlflow-user")
    assert all(gate.passed for gate in passport.gates)
    assert len(passport.gates) == 4
    message = paho.mqtt.subscribe.simple("jetloop/v1/releases/champion", hostname=mosquitto.host, port=mosquitto.port)
    assert message.retain
    assert msgspec.json.decode(message.payload, type=Wakeup) == Wakeup(release_id=channel.release_id, sequence=1)

    # What a person sees
    tags = lab.tags(first)
    assert tags["gate.balanced_accuracy"] == "pass 0.93 ≥ 0.8"
    assert tags["release.id"] == channel.release_id
    description = lab.client.get_model_version(lab.model, first).description
    assert description.startswith("Trained on the new corridor.")
    assert "**Released** on `champion`" in description

    # A version that misses a gate
    second = lab.version(metrics={"test/balanced_accuracy": 0.93, "test/blocked_recall": 0.71})
    lab.promote(second)
    lab.wait_for_status(second, "refused")
    assert "blocked_recall: 0.71 < 0.85" in lab.tags(second)["release.reason"]
    assert "params.yaml" in lab.tags(second)["release.reason"]
    assert "keep `" + channel.release_id in lab.client.get_model_version(lab.model, second).description
    assert lab.channel() == channel

    # On to a third, and back to the first: signed anew, not built anew
    third = lab.version()
    lab.promote(third)
    lab.wait_for_status(third, "released")
    lab.promote(first)
    wait_for(lambda: (found := lab.channel()) and found.sequence == 3, timeout_s=30, what="going back")
    back = lab.channel()
    assert back
    assert (back.model_version, back.release_id, back.passports) == (first, channel.release_id, channel.passports)
    assert lab.tags(third)["release.status"] == "released"
    assert lab.said().count("built for") == 2

    wait_for(lambda: len(lab.get("/api/releases")) == 4, what="the history")
    listed = [(one["version"], one["status"], one["sequence"], one["current"]) for one in lab.get("/api/releases")]
    assert listed == [
        (first, "released", 3, True),
        (third, "released", 2, False),
        (second, "refused", None, False),
        (first, "released", 1, False),
    ]
    assert lab.get("/api/releases")[0]["passports"][TARGET]["lineage"]["run_id"] == passport.lineage.run_id


def test_refused_versions_are_judged_again_only_when_something_changed(lab: Lab) -> None:
    """By polling alone: a refusal stands until limits change or a person deletes the tag; canary is its own ring."""
    version = lab.version(metrics={"test/balanced_accuracy": 0.75, "test/blocked_recall": 0.9})
    lab.promote(version)
    lab.serve("--no-webhook")
    lab.wait_for_status(version, "refused")
    judged = lab.said().count("is promoted")
    lab.stop()
    lab.serve("--no-webhook")  # it remembers over a restart
    lab.ready()
    other = lab.version()
    lab.promote(other, "canary")
    lab.wait_for_status(other, "released")
    assert lab.said().count(f"version {version} is promoted") == judged == 1
    assert lab.channel() is None
    assert lab.channel("canary")

    lab.client.delete_model_version_tag(lab.model, version, "release.status")
    wait_for(lambda: lab.said().count(f"version {version} is promoted") == 2, what="judging after the tag went")
    lab.wait_for_status(version, "refused")
    lab.edit_params("gates: [broken")
    wait_for(lambda: "the gates stay as they were" in lab.said(), what="a broken edit being said")
    lab.edit_params(PARAMS.format(accuracy=0.7))
    lab.wait_for_status(version, "released")
    assert "release.reason" not in lab.tags(version)
    assert lab.said().count("the gates stay as they were") == 1


def test_what_a_run_lacks_or_hides_is_refused(lab: Lab) -> None:
    """A network that is not the one registered, one that disagrees with its golden frames: refused, in words."""
    lab.serve("--no-webhook")
    wrong_parity = lab.version(off_by=0.5)
    lab.promote(wrong_parity)
    lab.wait_for_status(wrong_parity, "refused")
    assert f"parity.{TARGET}" in lab.tags(wrong_parity)["release.reason"]

    swapped = lab.version()
    lab.client.set_model_version_tag(lab.model, swapped, "lineage.golden_sha256", "0" * 64)
    lab.promote(swapped)
    lab.wait_for_status(swapped, "refused")
    assert "not the one that was registered" in lab.tags(swapped)["release.reason"]

    by_hand = lab.version()
    lab.client.delete_model_version_tag(lab.model, by_hand, "lineage.onnx_sha256")
    lab.promote(by_hand)
    lab.wait_for_status(by_hand, "refused")
    assert "register it with `dvc repro`" in lab.tags(by_hand)["release.reason"]
    assert lab.channel() is None
    assert "Traceback" not in lab.said()


def post(url: str, headers: dict[str, str], body: bytes) -> int:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as problem:
        return problem.code


def test_only_mlflows_signature_wakes_the_service(lab: Lab) -> None:
    """Wrong secret, altered body, old timestamp, no headers: 401, a line, no look at MLflow. The right one releases."""
    lab.client.create_registered_model(lab.model)
    lab.serve("--webhook-url", NOBODY, poll_s=NEVER_S)  # MLflow's own calls go nowhere
    lab.ready()
    wait_for(lambda: "has this alias" in lab.said(), what=f"the first look ({lab.said()})")
    version = lab.version()
    lab.promote(version)
    secret = (lab.release / "webhook.secret").read_text()
    url = f"{lab.url}/webhooks/mlflow"
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": lab.model}}).encode()

    def headers(secret: str, body: bytes, age_s: int = 0) -> dict[str, str]:
        stamp = str(int(time.time()) - age_s)
        return {
            webhook.SIGNATURE_HEADER: webhook.sign(secret, "d1", stamp, body),
            webhook.DELIVERY_ID_HEADER: "d1",
            webhook.TIMESTAMP_HEADER: stamp,
        }

    for bad in (
        headers("another secret", body),
        headers(secret, body + b" "),
        headers(secret, body, age_s=301),
        headers(secret, body, age_s=-301),
        headers(secret, body) | {webhook.DELIVERY_ID_HEADER: "d2"},
        headers(secret, body) | {webhook.TIMESTAMP_HEADER: "soon"},
        headers(secret, body) | {webhook.SIGNATURE_HEADER: "v1,ü"},
        {},
    ):
        assert post(url, bad, body) == 401
    assert lab.said().count("webhook from 127.0.0.1 refused") == 8
    assert post(url, headers(secret, b"x" * 70000), b"x" * 70000) == 401
    other = json.dumps({"entity": "model_version_alias", "data": {"name": "another-model"}}).encode()
    assert post(url, headers(secret, other), other) == 204
    assert lab.tags(version).get("release.status") is None
    assert lab.channel() is None
    assert post(url, headers(secret, body), body) == 204
    lab.wait_for_status(version, "released")
    assert oct((lab.release / "webhook.secret").stat().st_mode)[-3:] == "600"


def test_static_files_have_ranges_and_no_keys(lab: Lab) -> None:
    """Robots resume downloads; caches keep signed files but not the timestamp; nothing outside the two folders."""
    lab.serve("--no-webhook")
    lab.ready()
    request = urllib.request.Request(f"{lab.url}/metadata/1.root.json", headers={"Range": "bytes=0-9"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, len(answer.read())) == (206, 10)
        assert "immutable" in answer.headers["Cache-Control"]
    with urllib.request.urlopen(f"{lab.url}/metadata/timestamp.json", timeout=10) as answer:
        assert answer.headers["Cache-Control"] == "no-cache"
    for path in ("/keys/online/timestamp.pem", "/metadata/../keys/online/timestamp.pem", "/targets/%2e%2e/lock"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(lab.url + path, timeout=10)


def test_killed_while_publishing_it_finishes_once(lab: Lab, jetloop: Jetloop) -> None:
    """kill -9 before the timestamp, then before the history: each restart goes on, and all is signed once."""
    version = lab.version()
    lab.promote(version)
    for kill_at, published in ((6, False), (7, True)):
        lab.serve("--no-webhook", program=("-c", KILLED_AT), environment={"KILL_AT": str(kill_at)})
        process = lab.process
        assert process
        wait_for(lambda process=process: process.poll() is not None, timeout_s=60, what=f"the kill ({lab.said()})")
        assert process.returncode == -9
        assert lab.tags(version)["release.status"] == "pending"
        assert (lab.channel() is not None) == published

    lab.serve("--no-webhook")
    lab.wait_for_status(version, "released")
    channel = lab.channel()
    assert channel
    assert (channel.sequence, channel.model_version) == (1, version)
    lab.pull(channel.passports[TARGET])
    assert [entry["sequence"] for entry in lab.get("/api/releases")] == [1]
    assert lab.said().count("is published") == 1  # by the one killed last
    assert not list(lab.release.rglob(".writing-*"))
    code, shown, _ = jetloop("release", "status", "--folder", str(lab.release))
    assert code == 0
    assert "running" in shown
    process = lab.process
    assert process
    process.terminate()
    assert process.wait(timeout=30) == 0


def test_two_services_do_not_share_a_folder(lab: Lab, jetloop: Jetloop) -> None:
    """The second one ends with a line that names the first."""
    lab.serve("--no-webhook")
    lab.ready()
    code, _, said = jetloop(*lab.command("--no-webhook"), "--port", str(free_port()))
    assert code == 1
    assert f"already served by process {lab.process and lab.process.pid}" in said


def test_mistakes_end_in_one_line(jetloop: Jetloop, tmp_path: Path) -> None:
    """Folder not made, port taken, unknown target, broker address, params: each one line that says what to do."""
    release = tmp_path / "release"
    code, printed, _ = jetloop("release", "init", "--folder", str(release))
    assert code == 0
    assert "root.json" in printed
    assert "keys/offline" in printed
    code, _, said = jetloop("release", "init", "--folder", str(release))
    assert (code, "nothing is overwritten" in said) == (1, True)
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.format(accuracy=0.8).replace("cpu-ort-fp32", "cpu-ort-int8"))
    good = tmp_path / "good.yaml"
    good.write_text(PARAMS.format(accuracy=0.8))
    serve = ["release", "serve", "--params", str(good), "--folder", str(release), "--port", str(free_port())]
    with taken_port() as port:
        cases = [
            ([*serve, "--folder", str(tmp_path / "none")], "jetloop release init"),
            ([*serve, "--port", str(port)], "choose another --port"),
            ([*serve, "--target", "jetson-nano-trt8.2-fp16"], "available: cpu-ort-fp32"),
            ([*serve, "--mqtt", "broker"], "wanted host:port"),
            ([*serve, "--params", str(params)], "no limit for the target cpu-ort-fp32"),
            ([*serve, "--params", str(tmp_path / "none.yaml")], "none.yaml"),
            ([*serve, "--channel", "champion,../x"], "letters, digits"),
        ]
        for arguments, wanted in cases:
            code, _, said = jetloop(*arguments)
            assert code == 1, arguments
            assert wanted in said
            assert len(said.strip().splitlines()) == 1, said
    assert "nothing is released yet" in jetloop("release", "status", "--folder", str(release))[1]


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_mlflow_and_the_broker_may_come_late_and_go(tmp_path: Path) -> None:
    """Both down at the start, MLflow down again in mid-poll: a line each time, then it releases as if nothing was."""
    store, port, broker = tmp_path / "store", free_port(), free_port()
    uri = f"http://127.0.0.1:{port}"

    def mlflow() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "pipelines.cli", "mlflow", "--port", str(port), "--folder", str(store)]
        process = start(command, tmp_path / "mlflow.log", cwd=ROOT)
        wait_for(lambda: answers(f"{uri}/health"), timeout_s=90, what="MLflow")
        return process

    lab = Lab(uri, tmp_path)
    server = None
    try:
        lab.serve("--mqtt", f"127.0.0.1:{broker}")
        wait_for(lambda: "does not answer" in lab.said(), timeout_s=60, what="the outage being said")
        wait_for(lambda: "cannot be reached" in lab.said(), timeout_s=60, what="the broker's absence being said")
        server = mlflow()
        version = lab.version()
        lab.promote(version)
        lab.wait_for_status(version, "released")
        wait_for(lambda: "all is well again" in lab.said(), what=f"the recovery ({lab.said()})")
        end(server)
        wait_for(lambda: lab.said().count("retrying, from") == 2, timeout_s=60, what="the second outage being said")
        server = mlflow()
        second = lab.version()
        lab.promote(second)
        lab.wait_for_status(second, "released")
        wait_for(lambda: lab.said().count("all is well again") == 2, what=f"the second recovery ({lab.said()})")
        assert lab.said().count("retrying, from") == lab.said().count("all is well again") == 2
        assert "Traceback" not in lab.said()
    finally:
        lab.stop()
        if server:
            end(server)
