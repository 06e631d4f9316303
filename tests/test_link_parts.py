"""What the tests of slots, updater, outbox and link share: releases, a web server that lies, programs to kill."""

import contextlib
import hashlib
import http.server
import itertools
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from serving.config import MqttSettings
from serving.contracts.events import Event, RobotState
from serving.contracts.releases import (
    Channel,
    Decision,
    EngineFile,
    GoldenFrames,
    Lineage,
    Measured,
    Passport,
    engine_name,
    file_path,
)
from serving.contracts.releases import release_id as release_name
from serving.preprocess import PREPROCESSING
from serving.slots import Candidate, Slots
from telemetry import mosquitto
from telemetry.certificate_folder import CertificateFolder
from tests.conftest import end, free_port, listens, need, start, wait_for

TARGET = "cpu-ort-fp32"
GOLDEN = b"golden frames" * 50


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def engine_bytes(version: int) -> bytes:
    return f"engine {version} ".encode() * 5000


def passport_of(version: int, **changes: object) -> Passport:
    """A passport that fits `engine_bytes(version)` and GOLDEN."""
    engine = engine_bytes(version)
    release = release_name(str(version), sha256(engine))
    passport = Passport(
        release_id=release,
        target=TARGET,
        preprocessing=PREPROCESSING,
        engine=EngineFile(
            path=file_path(release, TARGET, engine_name(TARGET)), sha256=sha256(engine), bytes=len(engine)
        ),
        golden=GoldenFrames(
            path=file_path(release, TARGET, "golden.npz"),
            sha256=sha256(GOLDEN),
            bytes=len(GOLDEN),
            count=8,
            tolerance=0.01,
        ),
        decision=Decision(),
        measured=Measured(parity_max_abs=0.001, latency_p50_ms=1.0, latency_p99_ms=2.0, machine="test"),
        gates=[],
        lineage=Lineage(
            model_name="collision-avoidance",
            model_version=str(version),
            run_id="r",
            git_commit="c",
            git_dirty=False,
            data={},
            onnx_sha256=sha256(engine),
        ),
        approver="a person",
        approved_at="2026-11-23T10:00:00Z",
        built_at="2026-11-23T10:00:00Z",
    )
    return msgspec.structs.replace(passport, **changes)


def channel_of(version: int, sequence: int, ring: str = "champion") -> Channel:
    release = passport_of(version).release_id
    return Channel(
        channel=ring,
        sequence=sequence,
        release_id=release,
        model_version=str(version),
        passports={TARGET: file_path(release, TARGET, "passport.json")},
        issued_at="2026-11-23T10:00:00Z",
    )


def files_of(version: int) -> dict[str, bytes]:
    """Target path -> content of a whole release."""
    passport = passport_of(version)
    return {
        passport.engine.path: engine_bytes(version),
        passport.golden.path: GOLDEN,
        file_path(passport.release_id, TARGET, "passport.json"): msgspec.json.encode(passport),
    }


def fill(folder: Path, version: int) -> None:
    """Puts a release into a slot, as the updater does."""
    for path, content in files_of(version).items():
        (folder / Path(path).name).write_bytes(content)


def install(slots: Slots, version: int, sequence: int) -> Candidate:
    folder = slots.prepare()
    fill(folder, version)
    candidate = slots.candidate(folder, channel_of(version, sequence))
    slots.commit(candidate)
    return candidate


def is_whole(candidate: Candidate) -> bool:
    """Whether a slot's files are, byte for byte, those of the release that its passport names."""
    version = int(candidate.passport.lineage.model_version)
    return (
        candidate.passport == passport_of(version)
        and candidate.engine.read_bytes() == engine_bytes(version)
        and candidate.golden.read_bytes() == GOLDEN
    )


# Programs that the tests start and kill: python -c "from tests.test_link_parts import …"


def install_forever(folder: str) -> None:
    """Installs one release after the other until it is killed; says `ready` once the first is in."""
    slots = Slots(Path(folder))
    running = slots.current()
    first = int(running.passport.lineage.model_version) + 1 if running else 1
    for version in itertools.count(first):
        install(slots, version, version)
        if version == first:
            print("ready", flush=True)


def report_forever(path: str, port: int) -> None:
    """Emits events, 20 a commit, and drains them to a broker; prints each committed sequence number."""
    from serving.config import MqttSettings
    from serving.mqtt import Link
    from serving.outbox import Outbox
    from serving.reporter import Reporter

    outbox = Outbox(Path(path), 10 << 20)
    link = Link(MqttSettings(host="127.0.0.1", port=port), outbox, "lab", "r1", "s1", "champion", lambda: None)
    link.start()
    reporter = Reporter(outbox, "lab", "r1", "s1")
    while True:
        first = outbox.next_sequence
        for _ in range(20):
            reporter.emit("collision")
        while outbox.next_sequence < first + 20:
            time.sleep(0.001)
        print(outbox.next_sequence - 1, flush=True)


def program(call: str) -> list[str]:
    """Command line that runs one of the functions above."""
    return [sys.executable, "-c", f"from tests.test_link_parts import *; {call}"]


class Server:
    """A static web server on loopback that counts what is asked for, and can be told to lie."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.asked: list[str] = []
        self.lie: Callable[[str], bytes | Iterator[bytes] | None] = lambda path: None  # instead of the file's content
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement of its headers

            def do_GET(self) -> None:
                server._answer(self, folder)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, folder: Path) -> None:
        path = urlsplit(handler.path).path.lstrip("/")
        self.asked.append(path)
        content = self.lie(path)
        if content is None:
            with contextlib.suppress(OSError):
                content = (folder / path).read_bytes()
        if content is None:
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(200)
        if isinstance(content, bytes):
            handler.send_header("Content-Length", str(len(content)))
            content = iter([content])
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for part in content:
                handler.wfile.write(part)


class SecureBroker:
    """A Mosquitto as `jetloop broker config` makes it, with certificates of its own, on one port over restarts.

    Attributes:
        certificates: of this broker, two robots lab/r1 and lab/r2, and a collector.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "broker.log"
        self.certificates = CertificateFolder.create(folder / "certs", 30)
        self.certificates.issue("broker", 7, ["127.0.0.1"])
        for name in ("lab/r1", "lab/r2", "collector"):
            self.certificates.issue(name, 7)
        self.configuration = mosquitto.write(self.certificates, folder / "mosquitto", "127.0.0.1", self.port, "root")
        self.begin()

    def begin(self) -> None:
        self.process = start([need("mosquitto"), "-c", str(self.configuration)], self.log)
        try:
            wait_for(lambda: listens(self.port), what=f"the broker listening ({self.log})")
        except BaseException:
            self.close()
            raise

    def reload(self) -> None:
        """Has it read access list, certificates and revocations again."""
        warning = "ACL pattern"  # said each time the access list is read
        before = self.log.read_text().count(warning)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.log.read_text().count(warning) > before, what="the reload")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        end(self.process)

    def context(self, name: str) -> ssl.SSLContext:
        """TLS as `name`; an empty name shows no certificate."""
        context = ssl.create_default_context(cafile=str(self.certificates.folder / "ca.pem"))
        if name:
            place = self.certificates.place(name)
            context.load_cert_chain(place / "certificate.pem", place / "key.pem")
        return context

    def settings(self, name: str, **others: Any) -> MqttSettings:
        """The table [mqtt] of a robot."""
        place = self.certificates.place(name)
        chosen = {
            "ca": str(self.certificates.folder / "ca.pem"),
            "certificate": str(place / "certificate.pem"),
            "key": str(place / "key.pem"),
            "reconnect_max_s": 0.5,
        }
        return MqttSettings(**{"host": "127.0.0.1", "port": self.port} | chosen | others)


class Listener:
    """What somebody else hears of the robots: every message on `jetloop/#`, in the order of arrival."""

    def __init__(
        self, port: int, topic: str = "jetloop/#", *, tls: ssl.SSLContext | None = None, clean: bool = True
    ) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self.subscriptions = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"listener-{port}", clean_session=clean)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._subscribed
        self._client.on_message = lambda _client, _userdata, message: self.messages.append(message)
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()

    def _subscribed(self, *_: object) -> None:
        self.subscriptions += 1

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def events(self) -> list[Event]:
        heard = [message for message in list(self.messages) if not message.topic.endswith("/state")]
        return [
            msgspec.json.decode(message.payload, type=Event) for message in heard if "/releases/" not in message.topic
        ]

    def states(self) -> list[RobotState]:
        heard = [message for message in list(self.messages) if message.topic.endswith("/state")]
        return [msgspec.json.decode(message.payload, type=RobotState) for message in heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
