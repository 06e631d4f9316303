"""A server of Kafka's protocol (noida-db) on loopback. For the protocol alone: it keeps no promise over a kill -9."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import end, free_port, listens, need, start, wait_for


class KafkaServer:
    """One node, on one port over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [need("noida-db"), "start", "--only", "kafka", "--kafka-port", str(self.port)]
        self.process = start([*command, "--data-dir", str(self.folder / "data")], self.folder / "kafka.log")
        wait_for(lambda: listens(self.port), what=f"Kafka listening ({self.folder / 'kafka.log'})")

    def close(self) -> None:
        """Ends it in order, its data on the disk: the command is a wrapper that is gone before the server is."""
        if self.process is None:
            return
        server = psutil.Process(self.process.pid).children(recursive=True)
        end(self.process)
        _, alive = psutil.wait_procs(server, timeout=20)
        assert not alive, f"Kafka does not end ({self.folder / 'kafka.log'})"


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    """A Kafka of this test's own."""
    server = KafkaServer(tmp_path / "kafka")
    try:
        server.begin()
        yield server
    finally:
        server.close()
