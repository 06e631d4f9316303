"""`python -m tests.bench.archive`: a store of a day's events into the archive, and a question to it.

A SQLite store is filled at once (that is not measured), archived to a folder, compacted, and asked for the number of
avoidances of each robot on that day, with DuckDB, as `jetloop archive query` does.
"""

import datetime
import json
import resource
import shutil
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from serving.command_line import run
from serving.contracts.events import utc_now
from serving.errors import JetloopError
from telemetry import bulk, store_events, tables
from telemetry.archive_manifest import newest
from telemetry.archive_places import Place, place_of
from telemetry.archive_query import query
from telemetry.archive_run import ROWS_OF_A_COMMIT, TARGET_BYTES, compact
from telemetry.archive_run import run as run_archive
from telemetry.store import open_store
from tests.bench.events import DAY, synthetic

ROBOTS, DAYS, ASKED = 100, 3, 5
_AT_ONCE = 20_000
_NAMES = tuple(column.name for column in tables.events.columns if column.name != "position")
_QUESTION = """
    select robot, count(*) as avoidances from events
    where date = '{day}' and type = 'avoidance.started' group by robot order by robot
"""


def measure(folder: Path, events: int, progress: Progress) -> dict[str, Any]:
    """Fills, archives, asks; times in seconds."""
    address = f"sqlite:///{folder / 'events.db'}"
    fill(address, events, progress)
    store, place = open_store(address), place_of(str(folder / "archive"))
    task = progress.add_task("archiving", total=events)
    begun = time.perf_counter()
    done = run_archive(store, place, ROWS_OF_A_COMMIT, lambda rows, _total: progress.update(task, completed=rows))
    written_s = time.perf_counter() - begun
    store.close()
    if done.rows != events:
        raise JetloopError(f"{done.rows} of {events} events archived")
    asked_s, answer = ask(place)
    begun = time.perf_counter()
    compact(place, TARGET_BYTES, lambda _done, _total: None)
    compacted_s = time.perf_counter() - begun
    compacted_asked_s, again = ask(place)
    if again != answer:
        raise JetloopError("the compacted archive gives another answer")
    current = newest(place)
    assert current is not None
    return {
        **{"events": events, "robots": ROBOTS, "days": DAYS, "written_s": written_s, "files": done.files},
        **{"events_per_s": events / written_s, "megabytes": sum(file.bytes for file in current.files) / 1e6},
        **{"avoidances_per_robot_s": asked_s, "robots_in_answer": len(answer), "compacted_s": compacted_s},
        **{"avoidances_per_robot_compacted_s": compacted_asked_s},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def fill(address: str, events: int, progress: Progress) -> None:
    """Events into a store, past everything else that the collector keeps up."""
    store, now = open_store(address), utc_now()
    task = progress.add_task("filling the store", total=events)
    made = synthetic(events, ROBOTS, DAYS)
    while some := list(islice(made, _AT_ONCE)):
        with store.transaction() as connection:
            bulk.insert(connection, tables.events, _NAMES, [store_events.row(one, now) for one in some], "")
        progress.advance(task, len(some))
    store.close()


def ask(place: Place) -> tuple[float, list[dict[str, Any]]]:
    """The median of some questions, the first of them in a cold library, and the answer."""
    took, answer = [], []
    day = (DAY + datetime.timedelta(days=1)).date()
    for _ in range(ASKED):
        begun = time.perf_counter()
        answer = list(query(place, _QUESTION.format(day=day))[1])
        took.append(time.perf_counter() - begun)
    return statistics.median(took), answer


@click.command()
@click.option("--events", default=1_000_000, show_default=True)
def command(events: int) -> None:
    """Prints how long writing and asking took, and writes build/bench/archive.json."""
    folder = Path(tempfile.mkdtemp(prefix="jetloop-bench-archive-"))
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            result = measure(folder, events, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(
        f"{events:,} events written in {result['written_s']:.1f} s ({result['events_per_s']:,.0f} events/s), "
        f"{result['files']} files, {result['megabytes']:.1f} MB, peak memory {result['peak_memory_mb']:.0f} MB\n"
        f"avoidances of each of {result['robots_in_answer']} robots on one day: "
        f"{result['avoidances_per_robot_s']:.3f} s, compacted {result['avoidances_per_robot_compacted_s']:.3f} s "
        f"(compaction {result['compacted_s']:.1f} s)"
    )
    target = Path("build/bench/archive.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(command)
