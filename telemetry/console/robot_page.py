"""One robot's page: what it does now, its course as charts, its timeline, where it was refused. Pure: no I/O here."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from serving.contracts.releases import MODEL_NAME
from telemetry.console import charts, fleet, html
from telemetry.console.feed import Picture
from telemetry.console.html import DASH, Row

CHART = 360  # metrics events drawn: an hour of one every 10 s
TIMELINE = 100  # events shown
_OF_RELEASES = ("model.activated", "model.refused", "model.rolled-back", "engine.failed", "robot.started")


@dataclass(frozen=True)
class Course:
    """What the store knows of one robot, newest first."""

    robot: Row | None
    events: Sequence[Row]
    metrics: Sequence[Row]
    notes: Sequence[Row]


def head(row: Row, picture: Picture) -> Markup:
    form = '<div class="head"><h1>{} {}</h1>{}</div>'
    return Markup(form).format(row["robot"], html.note(row["site"]), fleet.state(row, picture.at))


def now(row: Row, picture: Picture) -> Markup:
    """The live state."""
    current = {one.channel: one for one in picture.releases if one.current}
    metrics: Mapping[str, Any] = (row["metrics"] if row["online"] else None) or {}
    hot = row["online"] and (row["temperature_c"] or 0.0) > fleet.HOT_C
    shown = html.figures(
        [
            (_text(metrics.get("decisions_per_s"), "{:.1f}"), "decisions/s", ""),
            (_text(metrics.get("latency_p99_ms"), "{:.1f} ms"), "latency p99", ""),
            (_text(metrics.get("blocked_rate"), "{:.0%}"), "blocked", ""),
            (_text(row["temperature_c"], "{:.0f} °C"), "temperature", "warn" if hot else ""),
            (_text(row["outbox_depth"], "{:,}"), "events that wait", "warn" if row["outbox_depth"] > 1000 else ""),
        ]
    )
    facts = html.facts(
        [
            ("model", fleet.model(row, current.get(row["ring"]))),
            ("release", row["release"] or DASH),
            ("engine", html.mono(row["engine"]) if row["engine"] else DASH),
            ("ring", row["ring"] or DASH),
            ("session", row["session"] or DASH),
            ("up for", _duration(row["uptime_s"]) if row["online"] else DASH),
            ("disk free", html.number(row["disk_free_mb"], "{:,.0f} MB")),
            ("last heard", html.ago(row["seen_at"])),
        ]
    )
    return shown + Markup('<div class="card">{}</div>').format(facts)


def course(found: Course) -> Markup:
    """Latency and blocked rate over the last hour of driving, with the changes of the model."""
    metrics = list(reversed(found.metrics))
    marks = [(row["captured_at"], 0.0) for row in found.events if row["type"].startswith("model.")]

    def points(name: str) -> list[tuple[datetime.datetime, float]]:
        having = [(row["captured_at"], row["data"].get(name)) for row in metrics]
        return sorted((at, float(v)) for at, v in having if isinstance(v, int | float) and not isinstance(v, bool))

    latency = charts.chart(
        "Latency", "ms", [("p50", points("latency_p50_ms")), ("p99", points("latency_p99_ms"))], marks
    )
    blocked = charts.chart("Blocked", "%", [("blocked", points("blocked_rate"))], marks)
    return Markup('<div class="charts">{}{}</div>').format(latency, blocked)


def refusals(found: Course) -> Markup:
    """Where this robot refused a model or went back, and why."""
    rows = [row for row in found.events if row["type"] in ("model.refused", "model.rolled-back")]
    if not rows:
        return Markup(
            '<p class="note">It refused no model and went back from none, as far as its events here tell.</p>'
        )
    items = (
        Markup("<li>{} {} {} <b>{}</b><p>{}</p></li>").format(
            html.clock(row["captured_at"], day=True),
            html.chip(row["type"]),
            html.link(f"/event/{row['id']}", str(row["data"].get("release") or row["release"])),
            "",
            _why(row),
        )
        for row in rows
    )
    return Markup('<ul class="refusals">{}</ul>').format(html.join(items))


def timeline(found: Course) -> Markup:
    """The robot's events, newest first; those about its model stand out."""
    if not found.events:
        return html.empty("No events of this robot yet", "Its metrics are not counted here.")
    items = (
        Markup('<li class="{}">{} {} {} {}</li>').format(
            "release" if row["type"] in _OF_RELEASES else "",
            html.clock(row["captured_at"], day=True),
            html.link(f"/event/{row['id']}", html.chip(row["type"]), "plain"),
            html.note(row["release"].removeprefix(f"{MODEL_NAME}-")),
            html.details(row["data"]),
        )
        for row in found.events
    )
    return Markup('<ol class="timeline">{}</ol>').format(html.join(items))


def notes(rows: Sequence[Row], subject: str, back: str, token: str, *, operates: bool) -> Markup:
    """The notes, and for an operator the form to add one."""
    items = (
        Markup("<li>{} <b>{}</b><p>{}</p></li>").format(html.clock(row["at"], day=True), row["author"], row["text"])
        for row in rows
    )
    listed = Markup('<ul class="notes">{}</ul>').format(html.join(items)) if rows else Markup("")
    form = (
        '<form method="post" action="/notes" class="add-note"><input type="hidden" name="token" value="{}">'
        '<input type="hidden" name="subject" value="{}"><input type="hidden" name="back" value="{}">'
        '<input name="text" maxlength="1000" required placeholder="Add a note" aria-label="Note"><button>Add</button>'
        "</form>"
    )
    if not operates:
        return listed or Markup('<p class="note">No notes yet; an operator may add one.</p>')
    return listed + Markup(form).format(token, subject, back)


def _why(row: Row) -> str:
    data = row["data"]
    return str(data.get("reason") or data.get("cause") or html.in_one_line(data))


def _text(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else "–"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"
