"""From a robot that falls silent to a message in Slack's format, through a real Prometheus and Alertmanager."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from telemetry.metrics import CollectorMetrics, new_registry, serve_metrics
from telemetry.store import Batch, open_store
from tests.conftest import ROOT, answers, end, free_port, need, start, wait_for
from tests.test_telemetry_samples import event, later, state

DEPLOY = ROOT / "deploy/prometheus"


@pytest.fixture
def slack() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook that takes what Slack takes: (address, messages)."""
    messages: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", messages
        finally:
            server.shutdown()


@pytest.fixture
def watched(tmp_path: Path, slack: tuple[str, list[dict[str, Any]]]) -> Iterator[int]:
    """Prometheus and Alertmanager with the files of deploy/, their waits cut to a second; the port of the metrics."""
    metrics_port, prometheus_port, alertmanager_port = free_port(), free_port(), free_port()
    quick = re.sub(r"for: \d+m", "for: 0s", (DEPLOY / "rules.yml").read_text())
    (tmp_path / "rules.yml").write_text(quick)
    configuration = (DEPLOY / "prometheus.yml").read_text().replace("15s", "1s")
    configuration = configuration.replace("9101", str(metrics_port)).replace("9093", str(alertmanager_port))
    configuration = re.sub(r"  - job_name: bridge.*", "", configuration, flags=re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(configuration)
    (tmp_path / "slack-url").write_text(slack[0])
    routes = (DEPLOY / "alertmanager.yml").read_text().replace("/etc/prometheus/slack-url", str(tmp_path / "slack-url"))
    (tmp_path / "alertmanager.yml").write_text(routes.replace("group_wait: 15s", "group_wait: 1s"))
    local = "127.0.0.1"
    running = [
        start(
            [
                *(need("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={local}:{prometheus_port}"),
            ],
            tmp_path / "prometheus.log",
        ),
        start(
            [
                *(need("prometheus-alertmanager"), f"--config.file={tmp_path / 'alertmanager.yml'}"),
                *(f"--storage.path={tmp_path / 'alerts'}", f"--web.listen-address={local}:{alertmanager_port}"),
                "--cluster.listen-address=",
            ],
            tmp_path / "alertmanager.log",
        ),
    ]
    try:
        for port in (prometheus_port, alertmanager_port):
            wait_for(lambda port=port: answers(f"http://{local}:{port}/-/ready"), 30, f"port {port} ({tmp_path})")
        yield metrics_port
    finally:
        for process in running:
            end(process)


def test_people_are_told(watched: int, slack: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A silent robot, a refused model, a model left and a dead letter each reach the webhook, with what to do."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    open_store(url).add(Batch(states=[state()]), received_at=later(-600))
    registry = new_registry(url)
    collector = CollectorMetrics(registry)
    serve_metrics(registry, watched)
    # Prometheus must have seen the counters at rest: only what rises is told.
    wait_for(lambda: "RobotSilent" in json.dumps(slack[1]), 30, f"the first message ({tmp_path})")
    collector.committed([event(1, "model.refused"), event(2, "model.rolled-back")], 2, 0, 1, 0.01)
    wanted = ("ModelRefused", "RobotWentBack", "DeadLetters")
    wait_for(lambda: all(one in json.dumps(slack[1]) for one in wanted), 30, f"{wanted} ({tmp_path})")
    silent = next(one for one in slack[1] if "RobotSilent" in json.dumps(one))
    assert silent["channel"] == "#robots"
    shown = silent["attachments"][0]
    assert shown["title"] == "FIRING RobotSilent (1)"
    assert shown["text"].startswith("lab/jetbot-1 has been silent for 10m")
    assert "Look at its network" in shown["text"]
