"""Processes that the demo starts, waits for and, whatever happens, ends."""

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.demo.guard import Guard, end_child
from serving.errors import OperatorError


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def http_ready(url: str) -> Callable[[], bool]:
    """A probe: does this address answer 200?"""

    def probe() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return probe


def port_ready(port: int) -> Callable[[], bool]:
    """A probe: does something listen on this port of loopback?"""

    def probe() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            return False

    return probe


@dataclass(frozen=True)
class Program:
    """One row of the table of processes."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    address: str = ""  # what to show a person


@dataclass
class Processes:
    """Starts programs and ends them all on leaving the `with` block.

    Each runs in a process group of its own, its output in `logs/<name>.log`. The guard ends them when the demo itself
    is killed.
    """

    logs: Path
    environment: Mapping[str, str]
    folder: Path
    guard: Guard = field(default_factory=Guard)
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __enter__(self) -> "Processes":
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end_all()
        finally:
            self.guard.close()

    def start(self, program: Program) -> None:
        with (self.logs / f"{program.name}.log").open("ab") as log:
            self.running[program.name] = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.guard.add(self.running[program.name].pid)

    def wait_ready(self, program: Program, timeout_s: float = 120.0) -> None:
        """Waits until the program answers.

        Raises:
            OperatorError: it ended or did not answer in time; the message holds its last lines.
        """
        deadline = time.monotonic() + timeout_s
        while not program.ready():
            self.check()
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"{program.name} did not answer within {timeout_s:.0f} s:\n{self._tail(program.name)}"
                )
            time.sleep(0.1)

    def check(self) -> None:
        """Raises OperatorError when a process has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise OperatorError(f"{name} ended by itself with code {process.returncode}:\n{self._tail(name)}")

    def end(self, name: str, timeout_s: float = 15.0) -> int:
        """Ends one process and its group, politely, then by force; returns its exit code."""
        process = self.running.pop(name)
        code = end_child(process, timeout_s)
        self.guard.remove(process.pid)
        return code

    def end_all(self) -> None:
        for name in reversed(list(self.running)):
            self.end(name)

    def _tail(self, name: str, lines: int = 8) -> str:
        path = self.logs / f"{name}.log"
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n".join(f"  {line}" for line in text) + f"\n  (all of it: {path})"
