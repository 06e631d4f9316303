"""The events as a list, the search for them, what was refused, and one event. Pure: data in, markup out."""

import datetime
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from serving.contracts.events import EVENT_TYPES
from serving.contracts.releases import MODEL_NAME
from telemetry.console import html
from telemetry.console.fleet import address
from telemetry.console.html import DASH, Row
from telemetry.console.reads import FOUND, Wanted
from telemetry.origin import Step

_SINCE = {"1h": 1.0, "24h": 24.0, "7d": 168.0, "": 0.0}  # hours; 0: all that is stored


def wanted(query: Mapping[str, str], now: datetime.datetime) -> Wanted:
    """A search out of a page's address; what it does not know it leaves out."""
    hours = _SINCE.get(query.get("since", ""), 0.0)
    return Wanted(
        robot=query.get("robot", "").strip()[:201],
        kind=query.get("type", "").strip()[:100],
        text=query.get("text", "").strip()[:200],
        since=now - datetime.timedelta(hours=hours) if hours else None,
        until=_moment(query.get("until", "")),
    )


def is_search(query: Mapping[str, str]) -> bool:
    return any(query.get(name) for name in ("robot", "type", "text", "since", "until"))


def form(query: Mapping[str, str]) -> Markup:
    """The search, kept in the page's address, so that it can be sent to somebody."""
    kinds = [("", "all but metrics"), ("all", "all"), *((kind, kind) for kind in EVENT_TYPES)]
    spans = [("", "any time"), ("1h", "last hour"), ("24h", "last day"), ("7d", "last week")]
    text = (
        '<form class="search" method="get" action="/events" role="search">'
        '<input type="search" id="search" name="text" value="{}" placeholder="Text or id    ( / )" '
        'aria-label="Text in the event, or its id">'
        '<input name="robot" value="{}" placeholder="Robot or site" aria-label="Robot or site">{}{}'
        '<input type="datetime-local" name="until" value="{}" aria-label="Until (UTC)" title="Until (UTC)">'
        "<button>Search</button>{}</form>"
    )
    clear = html.link("/events", "clear") if is_search(query) else ""
    selects = (
        html.select("type", "Type", kinds, query.get("type", "")),
        html.select("since", "Since", spans, query.get("since", "")),
    )
    return Markup(text).format(query.get("text", ""), query.get("robot", ""), *selects, query.get("until", ""), clear)


def found(rows: Sequence[Row]) -> Markup:
    if not rows:
        return html.empty("Nothing found", "No stored event is so. Take a word out, or a longer time.")
    many = f"the newest {FOUND}; narrow the search for older ones" if len(rows) == FOUND else f"{len(rows)} found"
    return html.note(many) + events(rows)


def events(rows: Sequence[Row]) -> Markup:
    return html.table(("Time (UTC)", "Robot", "What", "Release", "Details", "Event"), map(_event, rows), "events")


def no_events() -> Markup:
    return html.empty(
        "No events yet",
        "They appear here within a second of being stored. The collector stores them:",
        "jetloop collector --mqtt 127.0.0.1:1883",
    )


def _event(row: Row) -> tuple[object, ...]:
    return (
        html.clock(row["captured_at"]),
        html.link(address(row["site"], row["robot"]), row["robot"]) + Markup(" ") + html.note(row["site"]),
        html.chip(row["type"]),
        row["release"].removeprefix(f"{MODEL_NAME}-") or DASH,
        html.details(row["data"]),
        html.link(f"/event/{row['id']}", row["id"][:18], "mono"),
    )


def rejected(rows: Sequence[Row]) -> Markup:
    columns = ("Last (UTC)", "Topic", "Why it was refused", "Bytes>", "Times>")
    lines = (
        (
            f"{row['last_at']:%Y-%m-%d %H:%M:%S}",
            html.mono(row["topic"]),
            row["reason"],
            row["payload_bytes"],
            row["times"],
        )
        for row in rows
    )
    return html.table(columns, lines, "rejected")


def facts(row: Row) -> Markup:
    """An event's own data, as a list of names and values."""
    robot = html.link(address(row["site"], row["robot"]), f"{row['site']}/{row['robot']}")
    return html.facts(
        [
            ("happened", html.exact(row["captured_at"])),
            ("sent", html.exact(row["sent_at"])),
            ("stored", html.exact(row["received_at"])),
            ("robot", robot),
            ("session", row["session"]),
            ("sequence", row["sequence"]),
            ("release", row["release"] or DASH),
            ("engine", html.mono(row["engine"]) if row["engine"] else DASH),
            *((name, html.brief(value)) for name, value in row["data"].items()),
        ]
    )


def origin(steps: Iterable[Step]) -> Markup:
    line = '<li><span class="what">{}</span><div><span class="mono">{}</span> {}{}</div></li>'
    items = (Markup(line).format(step.what, step.value, html.note(step.note), _get(step.get)) for step in steps)
    return Markup('<ol class="origin">{}</ol>').format(html.join(items))


def _get(get: str) -> Markup:
    if not get:
        return Markup("")
    if get.startswith("http"):
        return html.link(get, get, "get")
    return Markup('<code class="get">{}</code>').format(get)


def _moment(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC) if text else None
    except ValueError:
        return None
