"""What the demo shows while it works: each step with the command a person would type, a bar, and the time it took."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipelines.demo.guard import Guard, end_child
from serving.errors import OperatorError

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Prints steps and keeps how long each took.

    Attributes:
        seconds: step -> seconds, in the order they were taken.
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.seconds: dict[str, float] = {}

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{text}", align="left")

    def say(self, text: str) -> None:
        self.console.print(text)

    @contextlib.contextmanager
    def step(self, name: str, total: float | None = None) -> Iterator[Callable[[str, float | None], None]]:
        """Shows a bar while the block runs; the block calls what it is given with (detail, completed)."""
        begun = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=total, detail="")

            def update(detail: str, completed: float | None) -> None:
                width = max(10, self.console.width - 70)
                progress.update(task, detail=detail[:width].replace("[", "\\["), completed=completed)

            yield update
        self.seconds[name] = round(time.monotonic() - begun, 2)
        self.console.print(f"  [green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]")

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        guard: Guard,
        log: Path,
        total: float | None = None,
        counts: Callable[[str], bool] = lambda line: False,
    ) -> list[str]:
        """Runs a command as a step and returns the lines it printed, which also go to `log`.

        Args:
            total: how many lines for which `counts` is true make the bar full.

        Raises:
            OperatorError: the command failed; the message holds its last lines.
        """
        lines: list[str] = []
        done = -1.0
        self.console.print(f"  [dim]$ {_shortened(command)}[/]", soft_wrap=True)
        with self.step(name, total) as update, log.open("a", buffering=1) as file:
            with _started(command, folder, environment, guard) as process:
                assert process.stdout is not None
                for raw in process.stdout:
                    line = _ESCAPES.sub("", raw.rstrip().split("\r")[-1])
                    file.write(line + "\n")
                    lines.append(line)
                    done += counts(line)
                    update(line.strip(), max(done, 0) if total else None)
            if process.returncode:
                tail = "\n".join(f"  {line}" for line in lines[-12:])
                raise OperatorError(f"`{' '.join(command)}` failed:\n{tail}\n  (all of it: {log})")
        return lines


def _shortened(command: Sequence[str], most: int = 5) -> str:
    """The command as a person would read it: long lists of files are counted."""
    names = [Path(part).name if part.startswith("/") else part for part in command]
    left = len(names) - most
    return " ".join(names) if left < 2 else f"{' '.join(names[:most])} … and {left} more"


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], guard: Guard
) -> Iterator["subprocess.Popen[str]"]:
    """A child in its own process group, ended with all it started when the block is left early."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    guard.add(process.pid)
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            end_child(process)
        guard.remove(process.pid)
