"""The fleet as a table: which robots, in which order, which page of them, and each one's line. Pure: no I/O here."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from telemetry.console import charts, html
from telemetry.console.feed import Picture
from telemetry.console.html import DASH, Row
from telemetry.releases import Release

SILENT_S = 60.0  # an online robot that told nothing for this long is worth a look; metrics come every 10 s
HOT_C = 80.0  # a Jetson Nano slows itself down from 97 °C on, and its heat sink should keep it far below
PAGE = 50  # robots shown at once

COLUMNS = ("Robot", "State", "Ring", "Model", "Latency p99>", "Trend", "Temp>", "Last avoidance", "Last event", "Seen>")
STATES = ("all", "online", "offline", "trouble")


class View(NamedTuple):
    """What one person looks at."""

    text: str = ""  # parts of names, sites, models, modes; all must be found
    state: str = "all"  # one of STATES
    ring: str = ""  # empty: all
    sort: str = "Robot"  # a column of SORTS
    down: bool = False
    page: int = 0


def _metric(name: str) -> Callable[[Row], Any]:
    return lambda row: (row["metrics"] or {}).get(name) if row["online"] else None


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "Robot": lambda row: (row["site"], row["robot"]),
    "State": lambda row: (not row["online"], row["mode"]),
    "Ring": lambda row: row["ring"],
    "Model": lambda row: row["model_version"].rjust(12),
    "Latency p99": _metric("latency_p99_ms"),
    "Temp": lambda row: row["temperature_c"],
    "Last event": lambda row: row["last_event_at"],
    "Seen": lambda row: row["seen_at"],
}


def troubled(row: Row, now: datetime.datetime) -> bool:
    """Online, and yet a person should look: silent, stopped, hot, or its events pile up."""
    if not row["online"]:
        return False
    silent = (now - row["seen_at"]).total_seconds() > SILENT_S
    return silent or row["mode"] in ("stopped", "no-model") or (row["temperature_c"] or 0.0) > HOT_C


def chosen(robots: Sequence[Row], view: View, now: datetime.datetime) -> list[Row]:
    """The robots that the view asks for, in its order; what a column does not know comes last."""
    words = view.text.lower().split()
    found = [row for row in robots if _fits(row, view, words, now)]
    key = SORTS.get(view.sort, SORTS["Robot"])
    known: list[Row] = []
    unknown: list[Row] = []
    for row in found:  # a robot may send a text where a number belongs
        (unknown if key(row) is None or isinstance(key(row), dict | list) else known).append(row)
    try:
        return sorted(known, key=key, reverse=view.down) + unknown
    except TypeError:
        return found


def _fits(row: Row, view: View, words: Sequence[str], now: datetime.datetime) -> bool:
    if view.ring and row["ring"] != view.ring:
        return False
    if view.state == "trouble" and not troubled(row, now):
        return False
    if view.state in ("online", "offline") and bool(row["online"]) != (view.state == "online"):
        return False
    said = " ".join(str(row[name]) for name in ("mode", "ring", "release", "reason"))
    text = f"{row['site']}/{row['robot']} v{row['model_version']} {said}"
    return all(word in text.lower() for word in words)


def page_of(rows: Sequence[Row], view: View) -> tuple[Sequence[Row], int, int]:
    """The rows of the view's page, its number as it is, and how many pages there are."""
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(view.page, 0), pages - 1)
    return rows[page * PAGE : (page + 1) * PAGE], page, pages


def summary(picture: Picture) -> Markup:
    """The line of figures above the robots."""
    online = sum(bool(robot["online"]) for robot in picture.robots)
    trouble = sum(troubled(robot, picture.at) for robot in picture.robots)
    missing = sum(gap.missing for gap in picture.gaps)
    running = " · ".join(f"v{one.version} on {one.channel}" for one in picture.releases if one.current)
    return html.figures(
        [
            (f"{online:,} of {len(picture.robots):,}", "robots online", ""),
            (f"{trouble:,}", "need a look", "warn" if trouble else ""),
            ("–" if picture.stored is None else f"{picture.stored:,}", "events stored", ""),
            (f"{missing:,}", "events missing", "warn" if missing else ""),
            (running or "–", "released", ""),
        ]
    )


def nobody() -> Markup:
    what = "A robot appears here with its first message, as soon as the broker and the collector run."
    return html.empty("No robot has reported yet", what, "jetloop-robot run --config robot.toml")


def address(site: str, robot: str) -> str:
    return f"/robot/{quote(site, safe='')}/{quote(robot, safe='')}"


def line(row: Row, picture: Picture, current: Mapping[str, Release]) -> Markup:
    """The cells of one robot."""
    metrics = (row["metrics"] if row["online"] else None) or {}  # old figures would pass for present ones
    trend = picture.trends.get((row["site"], row["robot"]), ())
    hot = row["online"] and (row["temperature_c"] or 0.0) > HOT_C
    celsius = html.number(row["temperature_c"] if row["online"] else None, "{:.0f} °C")
    avoided = picture.avoided.get((row["site"], row["robot"]))
    values = (
        html.link(address(row["site"], row["robot"]), Markup("<b>{}</b>").format(row["robot"]))
        + Markup(" ")
        + html.note(row["site"]),
        state(row, picture.at),
        row["ring"] or DASH,
        model(row, current.get(row["ring"])),
        html.number(metrics.get("latency_p99_ms"), "{:.1f} ms"),
        charts.sparkline(trend, "latency p99 of the last minutes") or DASH,
        html.chip(str(celsius), "warn") if hot else celsius,
        html.ago(avoided),
        _last_event(row),
        html.ago(row["seen_at"]),
    )
    return html.cells(COLUMNS, values)


def state(row: Row, now: datetime.datetime) -> Markup:
    if row["mode"] == "unknown":
        return html.chip("unknown") + Markup(" ") + html.note("no state has come yet")
    if not row["online"]:
        return html.chip("offline", "off") + Markup(" ") + html.note(row["reason"])
    silent = (now - row["seen_at"]).total_seconds() > SILENT_S
    why = row["reason"] or ("silent since" if silent else "")
    since = html.ago(row["seen_at"]) if silent and not row["reason"] else Markup("")
    return html.chip(row["mode"], "warn" if silent else "") + Markup(" ") + html.note(why) + Markup(" ") + since


def model(row: Row, current: Release | None) -> Markup:
    if not row["release"]:
        return DASH
    behind = current is not None and current.release_id != row["release"]
    hint = f"{current.channel} is v{current.version}" if behind and current else ""
    form = Markup('<span title="{} for {}"><b>v{}</b> {}</span>')
    return form.format(row["release"], row["target"], row["model_version"] or "?", html.note(hint))


def _last_event(row: Row) -> Markup:
    if not row["last_event"]:
        return DASH
    return html.link(f"/event/{row['last_event']}", html.chip(row["last_event_type"]), "plain")
