"""Collector and bridge as processes: what /metrics of each says, and a collector whose disk is full."""

import resource
import sqlite3
import urllib.request
from pathlib import Path

import pytest

from tests.bench.telemetry_rig import Mosquitto
from tests.conftest import ROOT, answers, end, free_port, need, start, wait_for
from tests.servers.kafka import KafkaServer
from tests.test_telemetry_collector import CLI, Bench
from tests.test_telemetry_samples import event, published


def _scraped(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode()).splitlines()


@pytest.mark.parametrize("service", ["collector", "bridge"])
def test_a_running_service_tells_its_metrics(tmp_path: Path, service: str) -> None:
    """`--metrics-port` of the real command: after three events and a piece of rubbish /metrics says so."""
    need("mosquitto")
    broker, port, kafka = Mosquitto(tmp_path / "broker"), free_port(), None
    log = tmp_path / "log"
    if service == "collector":
        where = ["--store", f"sqlite:///{tmp_path / 'events.db'}"]
        expected = ["jetloop_collector_events_stored_total 3.0", "jetloop_collector_rejected_total 1.0"]
        expected += ["jetloop_store_up 1.0", "jetloop_collector_queue_depth 0.0"]
    else:
        kafka = KafkaServer(tmp_path / "kafka")
        kafka.begin()
        where = ["--kafka", kafka.address, "--spool", str(tmp_path / "spool")]
        expected = ["jetloop_bridge_messages_total 3.0", "jetloop_bridge_dead_letters_total 1.0"]
    expected += ["jetloop_spool_bytes 0.0"]
    command = [*CLI, service, "--mqtt", f"127.0.0.1:{broker.port}", *where, "--metrics-port", str(port)]
    process = start(command, log, cwd=ROOT)
    bench = Bench(tmp_path, broker.port)
    try:
        wait_for(lambda: log.exists() and "connected to" in log.read_text(), 40, f"the {service} connected ({log})")
        good = [published(event(number)) for number in range(1, 4)]
        bench.send(*good, (good[0][0], b"rubbish"))
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/metrics"), what="/metrics answering")
        wait_for(lambda: set(expected) <= set(_scraped(port)), what=f"{expected} in /metrics")
        assert any(line.startswith("process_resident_memory_bytes ") for line in _scraped(port))
    finally:
        end(process)
        bench.close()
        broker.close()
        if kafka is not None:
            kafka.close()
    assert process.returncode == 0


def test_a_full_disk_acknowledges_nothing_it_has_not_stored(tmp_path: Path) -> None:
    """A file that may not grow stands for the disk: it is said, nothing is lost, and with room it goes on by itself."""
    need("mosquitto")
    broker = Mosquitto(tmp_path / "broker")
    bench = Bench(tmp_path, broker.port)
    try:
        collector = bench.collect()
        bench.send(published(event(1)))
        bench.wait_stored(1)
        room = bench.path.with_name(f"{bench.path.name}-wal").stat().st_size + 50_000
        hard = resource.prlimit(collector.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (room, hard))
        for number in range(2, 902, 30):
            bench.send(*(published(event(at)) for at in range(number, number + 30)))
        wait_for(lambda: "nothing is acknowledged until it does" in bench.text(), what="the full disk logged")
        with sqlite3.connect(bench.path) as connection:
            assert connection.execute("select count(*) from events").fetchone()[0] < 901
        assert collector.poll() is None
        resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (hard, hard))
        bench.wait_stored(901)
        assert bench.store().gaps(from_first=True) == []
        assert bench.store().count() == 901
        assert "Traceback" not in bench.text()
    finally:
        bench.close()
        broker.close()
