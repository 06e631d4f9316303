"""Publishing to a real S3 server, and robots that pull from its plain HTTP."""

import http.client
import http.server
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.release import publish_s3
from pipelines.release.keys import Keys
from pipelines.release.publish_s3 import Bucket
from pipelines.release.repository import Repository
from serving.errors import OperatorError
from tests.conftest import ROOT, wait_for
from tests.servers.s3 import S3, s3  # noqa: F401  # a fixture
from tests.test_link_parts import channel_of, files_of
from tests.test_release_keys import done
from tests.updater_lab import Lab, made_lab

_prefixes = itertools.count()


class OnS3:
    """A release folder, its place in the bucket, and a robot that pulls from there."""

    def __init__(self, folder: Path, server: S3) -> None:
        self.server = server
        self.prefix = f"releases-{next(_prefixes)}"
        self.url = f"s3://{server.bucket}/{self.prefix}"
        self.folder = folder / "release"
        if not self.folder.exists():
            done("init", "--folder", self.folder)

    def open(self, endpoint: str = "") -> Repository:
        bucket = Bucket(self.url, endpoint or self.server.endpoint, timeout_s=5)
        return Repository.open(self.folder, Keys.load(self.folder / "keys"), bucket)

    def publish(self, version: int) -> None:
        self.open().publish(files_of(version), [channel_of(version, version)])

    def timestamp(self) -> bytes:
        return self.server.read(f"{self.prefix}/metadata/timestamp.json")

    def is_same(self) -> bool:
        return self.timestamp() == (self.folder / "metadata/timestamp.json").read_bytes()


@pytest.fixture
def place(tmp_path: Path, s3: S3) -> OnS3:
    everyone = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"]}
    everyone["Resource"] = [f"arn:aws:s3:::{s3.bucket}/*"]
    s3.client.put_bucket_policy(Bucket=s3.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [everyone]}))
    return OnS3(tmp_path, s3)


@pytest.fixture
def lab(tmp_path: Path, place: OnS3) -> Iterator[Lab]:
    """A robot that pulls from the bucket by its plain address, without any key."""
    with made_lab(tmp_path / "lab") as made:
        url = f"{place.server.endpoint}/{place.server.bucket}/{place.prefix}"
        made.robot(url=url, root=str(place.folder / "metadata/1.root.json"), timeout_s=10)
        yield made


def test_a_robot_pulls_from_the_bucket(place: OnS3, lab: Lab) -> None:
    """What was published is in the bucket, timestamp last; a robot brings it over plain HTTP; a rotation is followed
    (a missing next root is 404 or 403 there); nothing new costs no request of the service."""
    place.publish(1)
    assert lab.updater.check()
    done("keys", "rotate", "timestamp", "--folder", place.folder)
    place.open().renew()
    place.publish(2)
    assert lab.updater.check()
    assert (lab.running(), lab.refusals, place.is_same()) == ("2", [], True)
    quiet = place.open()
    quiet.renew()
    assert quiet._mirror is not None
    place.server.client.put_object(Bucket=place.server.bucket, Key=f"{place.prefix}/metadata/timestamp.json", Body=b"x")
    quiet.renew()


def test_the_order_lets_nobody_see_a_part(place: OnS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine, golden frames, passport and channel, then targets, releases, snapshot, and timestamp.json at the end."""
    sent: list[str] = []
    real = Bucket._send
    monkeypatch.setattr(Bucket, "_send", lambda self, *rest: (sent.append(rest[1]), real(self, *rest))[1])
    place.publish(1)
    kinds = ["file" if "targets/" in name else name.split("/")[1].split(".")[-2] for name in sent]
    assert kinds == ["file"] * 4 + ["targets", "releases", "snapshot", "root", "timestamp"]


def test_a_second_publisher_loses(place: OnS3, tmp_path: Path, lab: Lab) -> None:
    """Two services by mistake, on copies of one folder: the second is told, the bucket keeps the first's publication
    whole, and the first goes on."""
    place.publish(1)
    shutil.copytree(place.folder, tmp_path / "copy")
    place.publish(2)
    second = Repository.open(
        tmp_path / "copy", Keys.load(tmp_path / "copy" / "keys"), Bucket(place.url, place.server.endpoint)
    )
    with pytest.raises(OperatorError, match="was not published from"):
        second.publish(files_of(3), [channel_of(3, 3)])
    assert place.is_same()
    assert lab.updater.check()
    place.publish(4)
    assert lab.updater.check()
    assert (lab.running(), lab.refusals) == ("4", [])


def test_two_publishers_at_the_same_instant(
    place: OnS3, tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked, then the first writes: the conditional write of the second fails, whichever object it is at."""
    place.publish(1)
    shutil.copytree(place.folder, tmp_path / "copy")
    real = Bucket._read

    def look(self: Bucket, name: str) -> Any:
        found = real(self, name)
        monkeypatch.setattr(Bucket, "_read", real)
        place.publish(2)  # between the look and the writes of the second
        return found

    monkeypatch.setattr(Bucket, "_read", look)
    keys = Keys.load(tmp_path / "copy" / "keys")
    with pytest.raises(OperatorError, match="by another service"):
        Repository.open(tmp_path / "copy", keys, Bucket(place.url, place.server.endpoint)).publish(
            files_of(3), [channel_of(3, 2)]
        )
    monkeypatch.undo()
    assert place.is_same()
    assert lab.updater.check()
    assert lab.running() == "2"


class Busy(http.server.BaseHTTPRequestHandler):
    """Passes on to the real server, and answers 503 now and then, or loses the answer to a request that took effect."""

    target = ""
    dice = random.Random(4)
    busy = 0
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chance = self.dice.random()
        if chance < 0.3:
            type(self).busy += 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        real = http.client.HTTPConnection(self.target, timeout=10)
        real.request(self.command, self.path, body, dict(self.headers))
        answer = real.getresponse()
        content = answer.read()
        if chance < 0.45:
            type(self).busy += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = handle_one

    def log_message(self, *_: object) -> None:
        pass


def test_503_now_and_then(place: OnS3, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 503 to a third of the requests and loses answers of others: all is published once, in the end."""
    monkeypatch.setattr(publish_s3, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(publish_s3, "ATTEMPTS", 12)
    Busy.target = place.server.endpoint.removeprefix("http://")
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        repository = place.open(f"http://{Busy.target}")  # the signature names the host that it is sent to
        bucket = repository._mirror
        assert isinstance(bucket, Bucket)
        address = f"127.0.0.1:{proxy.server_address[1]}"
        client = bucket._connected()
        client.meta.events.register("before-send.s3", lambda request, **_: _redirect(request, address))
        for version in (1, 2, 3):
            repository.publish(files_of(version), [channel_of(version, version)])
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert Busy.busy > 5
    assert place.is_same()
    assert lab.updater.check()
    assert lab.running() == "3"


def _redirect(request: Any, address: str) -> None:
    host = request.url.split("/")[2]
    request.headers["Host"] = host
    request.url = request.url.replace(host, address, 1)


def test_s3_that_is_away_is_the_operators(place: OnS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is published, the bucket is not: one line; the next pass of the service brings it."""
    monkeypatch.setattr(publish_s3, "_FIRST_PAUSE_S", 0.01)
    with pytest.raises(OperatorError, match="check the bucket"):
        place.open("http://127.0.0.1:9").publish(files_of(1), [channel_of(1, 1)])
    assert place.server.keys(place.prefix) == []
    assert place.open().renew() == []
    assert place.is_same()


@pytest.mark.parametrize("url", ["http://bucket/x", "s3:///x", "bucket", "s3://b/x?y"])
def test_what_is_no_bucket_is_said(url: str) -> None:
    """One line that shows the form."""
    with pytest.raises(OperatorError, match="s3://bucket/prefix"):
        Bucket(url)


def publish_one(folder: str, url: str, endpoint: str, version: int) -> None:
    """A program for the test below."""
    repository = Repository.open(Path(folder), Keys.load(Path(folder) / "keys"), Bucket(url, endpoint))
    print("ready", flush=True)
    repository.bring()
    repository.publish(files_of(version), [channel_of(version, version)])


def test_kill_9_of_a_publisher(place: OnS3, lab: Lab) -> None:
    """Killed at random moments of its upload: robots never see a part, the next one goes on, every release gets out."""
    dice = random.Random(7)
    place.publish(1)
    version, killed = 1, 0
    for _ in range(6):
        channel = Repository.open(place.folder, Keys({})).channel("champion")
        assert channel is not None
        version = channel.sequence + 1
        call = f"publish_one({str(place.folder)!r}, {place.url!r}, {place.server.endpoint!r}, {version})"
        program = [sys.executable, "-c", f"from tests.test_release_s3 import publish_one; {call}"]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            before = len(place.server.keys(place.prefix))
            if dice.random() < 0.5:
                wait_for(lambda: len(place.server.keys(place.prefix)) > before, 20, "something sent")  # noqa: B023
            time.sleep(dice.uniform(0, 0.05))
            killed += process.poll() is None
            process.kill()
        lab.updater.check()
        assert lab.refusals == []
    assert killed
    place.open().renew()
    assert place.is_same()
    lab.updater.check()
    current = Repository.open(place.folder, Keys({})).channel("champion")
    assert current is not None
    assert lab.running() == current.model_version
