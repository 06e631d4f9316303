"""The console with many robots: which are shown in which order, and how quick the page is in a browser."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.events import utc_now
from telemetry.console import charts, fleet
from telemetry.console.fleet import View
from telemetry.store import Batch, open_store
from tests.bench.console import measure
from tests.test_telemetry_samples import event, later, state


def _rows(tmp_path: Path, count: int = 120) -> list[dict[str, object]]:
    store = open_store(f"sqlite:///{tmp_path / 'events.db'}")
    robots = [
        state(
            f"jetbot-{at:03d}",
            ring="canary" if at % 4 == 0 else "champion",
            online=at % 10 != 0,
            mode="offline" if at % 10 == 0 else "driving",
            temperature_c=90.0 if at == 5 else 40.0 + at / 10 if at % 2 else None,
        )
        for at in range(count)
    ]
    names = [f"jetbot-{at:03d}" for at in range(1, count)]
    random.Random(1).shuffle(names)
    store.add(Batch(states=robots))
    store.add(Batch(events=[event(1, "metrics", name, data={"latency_p99_ms": int(name[-3:]) / 1}) for name in names]))
    return [dict(row) for row in store.robots()]


def test_filter_sort_and_pages(tmp_path: Path) -> None:
    """All words must be found; what a column does not know comes last, in both directions; pages cover all, once."""
    rows, now = _rows(tmp_path), utc_now()
    assert {row["robot"] for row in fleet.chosen(rows, View(text="jetbot-00 DRIVING"), now)} == {
        f"jetbot-00{at}" for at in range(1, 10)
    }
    assert len(fleet.chosen(rows, View(state="offline"), now)) == 12
    assert len(fleet.chosen(rows, View(ring="canary", state="online"), now)) == 24
    assert [row["robot"] for row in fleet.chosen(rows, View(state="trouble"), now)] == ["jetbot-005"]
    slow = fleet.chosen(rows, View(sort="Latency p99", down=True), now)
    assert [row["robot"] for row in slow[:2]] == ["jetbot-119", "jetbot-118"]
    assert all(not row["online"] for row in slow[-12:])
    seen = []
    for page in range(4):
        shown, at, pages = fleet.page_of(slow, View(page=page))
        seen += [row["robot"] for row in shown] if at == page else []
    assert pages == 3
    assert sorted(seen) == [row["robot"] for row in rows]


def test_silent_is_trouble(tmp_path: Path) -> None:
    """A robot that is online and not heard for over a minute needs a look."""
    rows = _rows(tmp_path, 3)
    assert fleet.chosen(rows, View(state="trouble"), utc_now()) == []
    assert len(fleet.chosen(rows, View(state="trouble"), later(61))) == 2


@given(st.lists(st.floats(), max_size=20), st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_charts_draw_anything(values: list[float], name: str) -> None:
    """No value that a robot may send breaks a chart, and no name becomes markup."""
    now = utc_now()
    for value in (charts.chart(name, name, [(name, [(now, one) for one in values])]), charts.sparkline(values, name)):
        assert value.count("<script") == 0


def test_a_line_ends_where_points_are_missing() -> None:
    """An hour without metrics is a gap, not a line."""
    points = [(later(10 * at), 1.0) for at in range(10)] + [(later(3600 + 10 * at), 1.0) for at in range(10)]
    drawn = charts.chart("Latency", "ms", [("p99", points)])
    path = drawn.split(' d="')[1].split('"')[0]
    assert path.count("M") == 2


@pytest.mark.alone
def test_a_thousand_robots_are_quick_to_see(tmp_path: Path) -> None:
    """With 1,000 robots that tell, the first view takes under 2 s and an update under 1 s."""
    found = measure(tmp_path, robots=1000, views=3, updates=6, screens=None)
    assert found["browser_errors"] == []
    assert found["first_view_s"][1] < 2.0  # the median
    assert found["update_s"][3] < 1.0
