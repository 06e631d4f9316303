"""Sessions on their way: to `jetloop receive` and to a real S3 server, cut, killed, twice, in each other's way."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipelines.receive import Receiver
from serving import files, upload_http, upload_process
from serving.capture import Capture
from serving.config import CaptureSettings, UploadSettings
from serving.errors import OperatorError, RejectedError
from serving.upload import Uploads
from tests.conftest import ROOT, wait_for
from tests.servers.s3 import S3, s3  # noqa: F401
from tests.simulators.cable import Cable
from tests.test_robot_parts import frame_of

TOKEN = "only robots know this"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    server = Receiver(("127.0.0.1", 0), tmp_path / "incoming", TOKEN, 100_000_000)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def to(receiver: Receiver, **more: Any) -> UploadSettings:
    url = f"http://127.0.0.1:{receiver.server_address[1]}/sessions"
    return UploadSettings(**{"url": url, "token": TOKEN, "timeout_s": 5.0, **more})


def session(folder: Path, size: int = 3_000_000, name: str = "r1-20260101T000000Z-ab12.zip") -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def test_a_file_arrives_whole_and_once(receiver: Receiver, tmp_path: Path) -> None:
    """The same file again is confirmed, not stored again; another one of that name is refused."""
    path = session(tmp_path)
    for _ in range(2):
        upload_process.upload(path, to(receiver))
    there = receiver.folder / path.name
    assert there.read_bytes() == path.read_bytes()
    changed_ns = there.stat().st_mtime_ns
    path.write_bytes(b"other")
    with pytest.raises(RejectedError, match="another file"):
        upload_process.upload(path, to(receiver))
    assert there.stat().st_mtime_ns == changed_ns
    assert not list(receiver.parts.iterdir())


def test_what_broke_off_goes_on_where_it_was(receiver: Receiver, tmp_path: Path) -> None:
    """The second attempt sends only the rest."""
    path = session(tmp_path)
    whole = path.read_bytes()
    (receiver.parts / path.name).write_bytes(whole[:2_000_000])
    taken: list[int] = []
    real = receiver.RequestHandlerClass._length  # type: ignore[attr-defined]

    def counted(handler: Any) -> int:
        taken.append(real(handler))
        return taken[-1]

    receiver.RequestHandlerClass._length = counted  # type: ignore[attr-defined]
    try:
        upload_process.upload(path, to(receiver))
    finally:
        receiver.RequestHandlerClass._length = real  # type: ignore[attr-defined]
    assert taken == [1_000_000]
    assert (receiver.folder / path.name).read_bytes() == whole


def test_a_damaged_part_is_thrown_away_and_sent_again(receiver: Receiver, tmp_path: Path) -> None:
    """What was half there and is not this file does not end in it."""
    path = session(tmp_path)
    (receiver.parts / path.name).write_bytes(os.urandom(2_000_000))
    with pytest.raises(OperatorError, match="422"):
        upload_process.upload(path, to(receiver))
    assert not (receiver.folder / path.name).exists()
    upload_process.upload(path, to(receiver))
    assert (receiver.folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "another"}, "check upload.token"),
        ({"url": "http://127.0.0.1:9/x"}, "refused"),
    ],
)
def test_what_may_pass_is_the_operators(receiver: Receiver, tmp_path: Path, settings: Any, message: str) -> None:
    """A wrong token, a server that is away: one line, try again."""
    with pytest.raises(OperatorError, match=message):
        upload_process.upload(session(tmp_path, 10), to(receiver, **settings))


@pytest.mark.parametrize("name", ["..%2fx.zip", ".zip", "x.txt", "a b.zip"])
def test_the_receiver_keeps_to_its_folder(receiver: Receiver, tmp_path: Path, name: str) -> None:
    """Names that are no session's are refused, and nothing is written."""
    path = session(tmp_path, 10)
    with path.open("rb") as file, pytest.raises(OperatorError, match="400"):
        upload_http.upload(file, name, files.sha256_of(path), to(receiver))
    assert [entry.name for entry in receiver.folder.iterdir()] == [".parts"]


def filled(folder: Path) -> Capture:
    capture = Capture(folder / "captures", CaptureSettings(min_free_mb=0), "r1")
    for brightness in range(20):
        capture.label(frame_of(brightness), "blocked")
        capture.label(frame_of(200 + brightness), "free")
    return capture


def test_the_robot_uploads_when_the_network_returns(receiver: Receiver, tmp_path: Path) -> None:
    """The cable is cut when the session is finished: it stays on the robot, is tried again, arrives, and only then is
    deleted there."""
    capture = filled(tmp_path)
    with Cable(f"http://127.0.0.1:{receiver.server_address[1]}") as cable:
        cable.cut()
        uploads = Uploads(to(receiver, url=cable.uri, retry_max_s=0.3), capture)
        uploads.start()
        try:
            path = capture.finish()
            digest = files.sha256_of(path)
            uploads.wake()
            wait_for(lambda: "trying again" in uploads.said, what="a failed attempt")
            assert path.exists()
            cable.mend()
            wait_for(lambda: not capture.waiting(), what="the confirmation")
        finally:
            uploads.close()
    assert files.sha256_of(receiver.folder / path.name) == digest
    assert not path.exists()
    assert "every byte" in uploads.said


def test_without_a_url_it_stays(tmp_path: Path) -> None:
    """Nothing is deleted, and the person is told."""
    capture = filled(tmp_path)
    uploads = Uploads(UploadSettings(), capture)
    uploads.start()
    capture.finish()
    assert "stays here" in uploads.wake()
    uploads.close()
    assert len(capture.waiting()) == 1


def attempt(path: Path, settings: UploadSettings, environment: "dict[str, str] | None" = None) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.upload_process", str(path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(settings))
    process.stdin.close()
    return process


def test_kill_9_in_the_middle_of_an_http_upload(receiver: Receiver, tmp_path: Path) -> None:
    """Killed at random moments, again and again: in the end there is one file, with every byte."""
    path = session(tmp_path, 30_000_000)
    chance = random.Random(5)
    part = receiver.parts / path.name
    killed = 0
    for _ in range(4):
        process = attempt(path, to(receiver))
        before = part.stat().st_size if part.exists() else 0
        limit = before + chance.randint(1, 5_000_000)
        while process.poll() is None and not (part.exists() and part.stat().st_size > limit):
            time.sleep(0.0005)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    process = attempt(path, to(receiver))
    assert process.wait(30) == 0, process.stderr.read()
    process.stderr.close()
    assert killed
    assert [entry.name for entry in receiver.folder.iterdir() if entry.is_file()] == [path.name]
    assert (receiver.folder / path.name).read_bytes() == path.read_bytes()


def settings(s3: S3) -> UploadSettings:
    return UploadSettings(url=f"s3://{s3.bucket}/robots", endpoint=s3.endpoint, part_mb=6, timeout_s=20)


def stored(s3: S3, name: str) -> bytes:
    return s3.read(f"robots/{name}")


@pytest.mark.parametrize("size", [100_000, 15_000_000], ids=["whole", "in-parts"])
def test_s3_holds_each_session_once(s3: S3, tmp_path: Path, size: int) -> None:
    """Whole or in parts; the same again is confirmed, another one of that name is refused, nothing is half there."""
    path = session(tmp_path, size, f"r1-{size}.zip")
    for _ in range(2):
        upload_process.upload(path, settings(s3))
    assert stored(s3, path.name) == path.read_bytes()
    other = session(tmp_path, size, path.name)
    with pytest.raises(RejectedError, match="another object"):
        upload_process.upload(other, settings(s3))
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")


def test_kill_9_in_the_middle_of_an_s3_upload(s3: S3, tmp_path: Path) -> None:
    """Killed after a part: the next attempt sends the rest alone, and the object appears once, whole."""
    path = session(tmp_path, 40_000_000, "r1-killed.zip")
    key = f"robots/{path.name}"

    def parts() -> list[Any]:
        with contextlib.suppress(Exception):
            (begun,) = s3.client.list_multipart_uploads(Bucket=s3.bucket, Prefix=key).get("Uploads", [])
            at = {"Bucket": s3.bucket, "Key": key, "UploadId": begun["UploadId"]}
            return list(s3.client.list_parts(**at).get("Parts", []))
        return []

    process = attempt(path, settings(s3))
    while process.poll() is None and not parts():
        time.sleep(0.001)
    assert process.poll() is None, "it was killed before its end"
    process.kill()
    process.wait()
    process.stderr.close()
    before = parts()
    assert 0 < len(before) < 7
    upload_process.upload(path, settings(s3))
    assert stored(s3, path.name) == path.read_bytes()
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")
