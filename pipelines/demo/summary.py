"""What the demo came to: numbers out of the store, the flight recorder and the registry, and the promises they keep."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.demo import robot_watch
from pipelines.demo.loop import Round
from pipelines.demo.services import ROBOT, SITE, House

MOTORS_ZERO_MS = 200.0


def events(house: House, sent: int) -> dict[str, int]:
    """Counts the robot's events in the store against the numbers it gave them.

    Args:
        sent: the highest sequence number that the robot handed out.
    """
    from telemetry.store import open_reader

    with contextlib.closing(open_reader(house.store)) as store:
        counts = store.counts_by_type(SITE, ROBOT)
        last = max((int(row["last_sequence"]) for row in store.robots() if row["robot"] == ROBOT), default=0)
        missing = sum(gap.missing for gap in store.gaps(from_first=True) if gap.robot == ROBOT)
    stored = sum(counts.values())
    arrived = last - missing  # different sequence numbers
    return {
        "sent": sent,
        "stored": stored,
        "lost": sent - arrived,
        "duplicates_stored": stored - arrived,
        "avoidances": counts.get("avoidance.started", 0),
        "collisions": counts.get("collision", 0),
    }


def summarise(house: House, rounds: list[Round], seconds: dict[str, float], told: dict[str, int]) -> dict[str, Any]:
    """Everything that `summary.json` holds; `promises` says of each whether it was kept."""
    recorded = robot_watch.decisions(house.recorder)
    latency = robot_watch.latency_ms(recorded)
    released = [one for one in rounds if one.status == "released"]
    digests = _digests(house, released)
    promises = {
        "every round ended in a release or a refusal with its reason": all(
            one.status == "released" or (one.status == "refused" and one.reason) for one in rounds
        ),
        "events lost: 0": told["lost"] == 0,
        "duplicates stored: 0": told["duplicates_stored"] == 0,
    }
    if released:
        swaps = [one.takeover for one in released if one.takeover]
        gaps = [swap.gap_ms for swap in swaps if swap.gap_ms is not None]
        promises |= {
            "engine on the robot = digest in its passport": digests["robot"] == digests["passport"],
            "every decision after the last swap is by the new engine": swaps[-1].all_by_new,
            f"no swap kept the robot waiting for over {MOTORS_ZERO_MS:.0f} ms": all(g <= MOTORS_ZERO_MS for g in gaps),
        }
    return {
        "rounds": [dataclasses.asdict(one) for one in rounds],
        "seconds": seconds,
        "decisions": len(recorded),
        "decision_latency_ms": latency,
        "events": told,
        "digests": digests,
        "promises": {text: bool(kept) for text, kept in promises.items()},
    }


def _digests(house: House, released: list[Round]) -> dict[str, str]:
    """The digest of the engine file that the robot runs, computed here, and the one its passport promises."""
    from serving.slots import Slots

    if not released:
        return {"robot": "", "passport": ""}
    current = Slots(house.robot_state / "slots").current()
    on_robot = robot_watch.sha256(current.engine) if current else "none"
    return {"robot": on_robot, "passport": released[-1].engine_sha256}


def write(path: Path, summary: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, path)


def show(console: Console, summary: dict[str, Any]) -> None:
    """The table at the end."""
    table = Table(title="one turn of the loop, and another", title_justify="left", show_lines=False)
    table.add_column("")
    for one in summary["rounds"]:
        table.add_column(f"round {one['number']}", justify="right")
    for name, values in _rows(summary["rounds"]):
        table.add_row(name, *values)
    console.print()
    console.print(table)
    _show_robot(console, summary)
    for text, kept in summary["promises"].items():
        console.print(f"  {'[green]✓[/]' if kept else '[bold red]✗[/]'} {text}")


def _rows(rounds: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    def metric(key: str) -> list[str]:
        return [f"{one['metrics'][key]:.3f}" if key in one["metrics"] else "–" for one in rounds]

    def seconds(value: float | None) -> str:
        return f"{value:.1f} s" if value is not None else "–"

    swaps = [one["takeover"] or {} for one in rounds]
    return [
        ("images", [str(one["images"]) for one in rounds]),
        ("left out of what was handed in", [str(len(one["left_out"])) for one in rounds]),
        ("stages run", [str(len(one["stages_run"])) for one in rounds]),
        ("version", [one["version"] for one in rounds]),
        ("balanced accuracy, unseen", metric("balanced_accuracy")),
        ("blocked recall, unseen", metric("blocked_recall")),
        ("release", [one["status"] for one in rounds]),
        ("alias → first decision", [seconds(one["alias_to_first_decision_s"]) for one in rounds]),
        ("pause while swapping", [f"{s['gap_ms']:.0f} ms" if s.get("gap_ms") is not None else "–" for s in swaps]),
        ("decisions", [str(s.get("decisions", "–")) for s in swaps]),
    ]


def _show_robot(console: Console, summary: dict[str, Any]) -> None:
    told, latency = summary["events"], summary["decision_latency_ms"]
    if latency:
        console.print(
            f"  {summary['decisions']} decisions, latency p50 {latency['p50']} ms, p99 {latency['p99']} ms; "
            f"{told['avoidances']} avoidances, {told['collisions']} collisions"
        )
    console.print(
        f"  events: {told['sent']} sent, {told['stored']} stored, {told['lost']} lost, "
        f"{told['duplicates_stored']} stored twice"
    )
