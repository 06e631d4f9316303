"""A real PostgreSQL on loopback: one server for the tests of a process, a database of its own for each test.

PostgreSQL refuses to run as root; root runs it as the user `postgres`.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, need, wait_for

_PASSED_ON = ("PATH", "LANG", "TZ")


class Postgres:
    """The server, in a folder of its own. It may be stopped and started again; its data stay until `close`.

    Args:
        settings: of postgresql.conf, such as `fsync=on`; a test's data need not survive a power cut.
    """

    def __init__(self, *settings: str) -> None:
        # Not one of pytest's folders: they are closed to other users.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="jetloop-postgres-"))
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        self._settings = settings or ("fsync=off",)
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        self._bin = _programs()
        self.port = free_port()
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._run([str(self._bin / "initdb"), "-D", str(folder / "data"), "-U", "jetloop", "--no-sync", "-A", "trust"])
        self.start()

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"events{next(self._numbers)}"
        self._run([str(self._bin / "createdb"), *self._client(), name])
        return f"postgresql+psycopg://jetloop@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port)]
        for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories=", *self._settings):
            command += ["-c", setting]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=_environment(), **self._as
            )
        ready = [str(self._bin / "pg_isready"), *self._client(), "-d", "postgres", "-q"]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, 40, f"PostgreSQL ({self._folder / 'log'})")

    def stop(self, how: int = signal.SIGQUIT) -> None:
        """Ends it at once (SIGQUIT), or as told: SIGKILL, SIGINT."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def _client(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "jetloop"]

    def _run(self, command: list[str]) -> None:
        subprocess.run(
            command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, env=_environment(), timeout=60, **self._as
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for all tests of this process."""
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


def _programs() -> Path:
    """Debian keeps them where PATH does not look."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else Path(need("initdb")).parent


def _environment() -> dict[str, str]:
    return {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}
