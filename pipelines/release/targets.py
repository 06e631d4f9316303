"""`jetloop release targets`: the table of the kinds of machine that releases are built for."""

import click

from serving.contracts.targets import TARGETS, TargetKind


@click.command("targets")
def command() -> None:
    """Prints the targets: board, GPU, precision, limits, and where their engines are built.

    Reads nothing, changes nothing. A longer version in a name makes a target of its own: jetson-nano-trt8.2.1-fp16.

    Example: jetloop release targets
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "board", "GPU", "opset", "memory", "int8", "built")
    for kind in TARGETS:
        table.add_row(kind.name, kind.board, kind.compute_capability or "-", *_limits(kind), kind.built)
    Console(width=None if Console().is_terminal else 140).print(table)


def _limits(kind: TargetKind) -> tuple[str, str, str]:
    int8 = any(other.board == kind.board and other.precision == "int8" for other in TARGETS)
    return f"≤ {kind.max_opset}", f"{kind.memory_mb} MB" if kind.memory_mb else "-", "yes" if int8 else "no"
