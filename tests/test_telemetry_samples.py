"""Events, states, passports and a release service for the tests of telemetry, and that they keep the contracts."""

import contextlib
import datetime
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from serving.contracts import releases
from serving.contracts.events import Event, RobotState, event_topic, state_topic, utc_now, uuid7
from telemetry.messages import parse

ENGINE = "3f" * 32
RELEASE = releases.release_id("3", "ab" * 32)


def event(sequence: int = 1, kind: str = "collision", robot: str = "jetbot-1", **changes: Any) -> Event:
    values: dict[str, Any] = {
        **{"id": uuid7(), "source": f"/jetloop/lab/{robot}", "type": kind, "time": utc_now(), "site": "lab"},
        **{"robot": robot, "session": "s-1", "sequence": sequence, "release": RELEASE, "engine": ENGINE},
        **{"sentat": utc_now(), "data": {"p_blocked": 0.93}},
    }
    return Event(**{**values, **changes})


def state(robot: str = "jetbot-1", **changes: Any) -> RobotState:
    values: dict[str, Any] = {
        **{"site": "lab", "robot": robot, "session": "s-1", "online": True, "at": utc_now(), "mode": "driving"},
        **{"ring": "champion", "target": "cpu-ort-fp32", "release": RELEASE, "model_version": "3", "engine": ENGINE},
    }
    return RobotState(**{**values, **changes})


def published(what: Event | RobotState) -> tuple[str, bytes]:
    """Topic and payload, as a robot publishes it."""
    if isinstance(what, Event):
        return event_topic(what.site, what.robot, what.type), msgspec.json.encode(what)
    return state_topic(what.site, what.robot), msgspec.json.encode(what)


def passport(version: str = "3", engine: str = ENGINE, run_id: str = "9f" * 16) -> releases.Passport:
    release, target = releases.release_id(version, "ab" * 32), "cpu-ort-fp32"
    return releases.Passport(
        release_id=release,
        target=target,
        preprocessing="p1",
        engine=releases.EngineFile(
            path=releases.file_path(release, target, releases.engine_name(target)), sha256=engine, bytes=10
        ),
        golden=releases.GoldenFrames(path="golden.npz", sha256="c" * 64, bytes=1, count=8, tolerance=0.01),
        decision=releases.Decision(),
        measured=releases.Measured(parity_max_abs=1e-6, latency_p50_ms=1.2, latency_p99_ms=2.5, machine="bench"),
        gates=[releases.GateResult(name="balanced_accuracy", passed=True, value=0.941, limit=0.8)],
        lineage=releases.Lineage(
            model_name=releases.MODEL_NAME,
            model_version=version,
            run_id=run_id,
            git_commit="4bb1f0c2" * 5,
            git_dirty=False,
            data={"data/sessions": "d41d8cd98f00b204e9800998ecf8427e.dir"},
            onnx_sha256="ab" * 32,
        ),
        approver="alias champion",
        approved_at="2026-11-23T11:58:00Z",
        built_at="2026-11-23T11:58:20Z",
    )


def decision(passports: "dict[str, releases.Passport] | None" = None, **changes: Any) -> dict[str, Any]:
    """One entry of `GET /api/releases`."""
    made = {"cpu-ort-fp32": passport()} if passports is None else passports
    values = {
        **{"issued_at": "2026-11-23T12:01:00Z", "channel": "champion", "version": "3", "status": "released"},
        **{"release_id": RELEASE, "sequence": 2, "reason": "", "current": True},
        "passports": msgspec.to_builtins(made),
    }
    return {**values, **changes}


@contextlib.contextmanager
def release_service(entries: Any) -> Iterator[str]:
    """A real HTTP server that answers /api/releases with `entries`; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = msgspec.json.encode(entries)
            self.send_response(200 if self.path == "/api/releases" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def later(seconds: float) -> datetime.datetime:
    return utc_now() + datetime.timedelta(seconds=seconds)


def test_samples_keep_the_contracts() -> None:
    """What the other tests publish is what a robot may publish."""
    for what in (event(), event(kind="metrics"), state()):
        assert parse(*published(what)) == what
