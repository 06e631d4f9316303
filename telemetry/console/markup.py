"""HTML of what the console shows. Pure: data in, markup out; every value is escaped by markupsafe."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from serving.contracts.releases import MODEL_NAME, GateResult
from telemetry.console.feed import Picture, Row
from telemetry.origin import Step
from telemetry.releases import Release

SILENT_S = 60.0  # an online robot that told nothing for this long is worth a look; metrics come every 10 s

_TONE = {  # of a state or an event: how a person should take it
    "driving": "good",
    "released": "good",
    "model.activated": "good",
    "loading": "busy",
    "standing": "busy",
    "no-model": "busy",
    "model.rolled-back": "warn",
    "rolled-back": "warn",
    "intervention": "warn",
    "frame.stale": "warn",
    "outbox.dropped": "warn",
    "stopped": "warn",
    "collision": "bad",
    "engine.failed": "bad",
    "model.refused": "bad",
    "refused": "bad",
}
_DASH = Markup('<span class="none">–</span>')


def join(parts: Iterable[Any]) -> Markup:
    return Markup("").join(parts)


def chip(text: str, tone: str = "") -> Markup:
    return Markup('<span class="chip {}">{}</span>').format(tone or _TONE.get(text, ""), text)


def note(text: Any) -> Markup:
    return Markup('<span class="note">{}</span>').format(text) if text else Markup("")


def empty(title: str, what_to_do: str, command: str = "") -> Markup:
    """What stands where there is nothing yet: why, and what makes it come."""
    shown = Markup("<pre>{}</pre>").format(command) if command else ""
    return Markup('<div class="empty"><b>{}</b><p>{}</p>{}</div>').format(title, what_to_do, shown)


def problem(text: str) -> Markup:
    return Markup('<div class="problem" role="alert">{}</div>').format(text) if text else Markup("")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> Markup:
    """A table that becomes a list of cards on a phone. A column whose name ends in `>` is aligned right."""
    names = [(column.rstrip(">"), "number" if column.endswith(">") else "") for column in columns]
    head = join(Markup('<th class="{}">{}</th>').format(css, name) for name, css in names)
    body = join(
        Markup("<tr>{}</tr>").format(
            join(
                Markup('<td class="{}" data-label="{}"><div>{}</div></td>').format(css, name, cell)
                for (name, css), cell in zip(names, row, strict=True)
            )
        )
        for row in rows
    )
    form = '<div class="sheet"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(form).format(kind, head, body)


# ---- robots


def summary(picture: Picture) -> Markup:
    """The line of figures above the robots."""
    online = sum(bool(robot["online"]) for robot in picture.robots)
    missing = sum(gap.missing for gap in picture.gaps)
    running = " · ".join(f"v{one.version} on {one.channel}" for one in picture.releases if one.current)
    figures = [
        (f"{online} of {len(picture.robots)}", "robots online", ""),
        (f"{picture.stored:,}", "events stored", ""),
        (f"{missing:,}", "events missing", "warn" if missing else ""),
        (running or "–", "released", ""),
    ]
    form = '<div class="figure {}"><b>{}</b><span>{}</span></div>'
    cells = join(Markup(form).format(tone, value, name) for value, name, tone in figures)
    return Markup('<div class="figures">{}</div>').format(cells)


def robots(picture: Picture) -> Markup:
    if not picture.robots:
        what = "A robot appears here with its first message, as soon as the broker and the collector run."
        return empty("No robot has reported yet", what, "jetloop-robot run --config robot.toml")
    columns = ("Robot", "State", "Model", "Decisions/s>", "Latency p99>", "Last event", "Last seen>")
    current = {one.channel: one for one in picture.releases if one.current}
    return table(columns, (_robot(row, picture.at, current) for row in picture.robots), "robots")


def _robot(row: Row, now: datetime.datetime, current: Mapping[str, Release]) -> tuple[Any, ...]:
    metrics = (row["metrics"] if row["online"] else None) or {}  # old figures would pass for present ones
    link = Markup('<a href="/events?robot={}"><b>{}</b></a> {}')
    return (
        link.format(f"{row['site']}/{row['robot']}", row["robot"], note(row["site"])),
        _state(row, now),
        _model(row, current.get(row["ring"])),
        _number(metrics.get("decisions_per_s"), "{:.1f}"),
        _number(metrics.get("latency_p99_ms"), "{:.1f} ms"),
        _last_event(row),
        Markup('<time title="{}">{}</time>').format(_exact(row["seen_at"]), ago(now, row["seen_at"])),
    )


def _state(row: Row, now: datetime.datetime) -> Markup:
    if row["mode"] == "unknown":
        return chip("unknown") + Markup(" ") + note("no state has come yet")
    if not row["online"]:
        return chip("offline", "off") + Markup(" ") + note(row["reason"])
    silent = (now - row["seen_at"]).total_seconds()
    why = row["reason"] or (f"silent for {silent:.0f} s" if silent > SILENT_S else "")
    return chip(row["mode"], "warn" if silent > SILENT_S else "") + Markup(" ") + note(why)


def _model(row: Row, current: Release | None) -> Markup:
    if not row["release"]:
        return _DASH
    version = Markup("<b>v{}</b>").format(row["model_version"] or "?")
    behind = current is not None and current.release_id != row["release"]
    hint = f"{current.channel} is v{current.version}" if behind and current else row["target"]
    return Markup('<span title="{}">{} {}</span>').format(row["release"], version, note(hint))


def _last_event(row: Row) -> Markup:
    if not row["last_event"]:
        return _DASH
    return Markup('<a class="plain" href="/event/{}">{}</a>').format(row["last_event"], chip(row["last_event_type"]))


def _number(value: Any, form: str) -> Markup | str:
    return form.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else _DASH


# ---- events


def events(rows: Sequence[Row], nothing: Markup) -> Markup:
    return (
        table(("Time (UTC)", "Robot", "What", "Release", "Details", "Event"), map(_event, rows), "events")
        if rows
        else nothing
    )


def no_events() -> Markup:
    return empty(
        "No events yet",
        "They appear here within a second of being stored. The collector stores them:",
        "jetloop collector --mqtt 127.0.0.1:1883",
    )


def _event(row: Row) -> tuple[Any, ...]:
    details = ", ".join(f"{name} {_brief(value)}" for name, value in row["data"].items())
    return (
        Markup('<time class="mono" title="{}">{}</time>').format(
            _exact(row["captured_at"]), f"{row['captured_at']:%H:%M:%S.%f}"[:-3]
        ),
        Markup("{} {}").format(row["robot"], note(row["site"])),
        chip(row["type"]),
        row["release"].removeprefix(f"{MODEL_NAME}-") or _DASH,
        Markup('<span class="details">{}</span>').format(details[:300]) if details else _DASH,
        Markup('<a class="mono" href="/event/{}">{}</a>').format(row["id"], row["id"][:18]),
    )


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rejected(rows: Sequence[Row]) -> Markup:
    columns = ("Last (UTC)", "Topic", "Why it was refused", "Bytes>", "Times>")
    cells = (
        (
            f"{row['last_at']:%Y-%m-%d %H:%M:%S}",
            Markup('<span class="mono">{}</span>').format(row["topic"]),
            row["reason"],
            row["payload_bytes"],
            row["times"],
        )
        for row in rows
    )
    return table(columns, cells, "rejected")


# ---- one event


def facts(row: Row) -> Markup:
    """An event's own data, as a list of names and values."""
    pairs = [
        ("happened", _exact(row["captured_at"])),
        ("sent", _exact(row["sent_at"])),
        ("stored", _exact(row["received_at"])),
        ("robot", f"{row['site']}/{row['robot']}"),
        ("session", row["session"]),
        ("sequence", row["sequence"]),
        ("release", row["release"] or _DASH),
        ("engine", Markup('<span class="mono">{}</span>').format(row["engine"]) if row["engine"] else _DASH),
        *((name, _brief(value)) for name, value in row["data"].items()),
    ]
    return Markup("<dl>{}</dl>").format(join(Markup("<dt>{}</dt><dd>{}</dd>").format(*pair) for pair in pairs))


def origin(steps: Iterable[Step]) -> Markup:
    form = '<li><span class="what">{}</span><div><span class="mono">{}</span> {}{}</div></li>'
    items = (Markup(form).format(step.what, step.value, note(step.note), _get(step.get)) for step in steps)
    return Markup('<ol class="origin">{}</ol>').format(join(items))


def _get(get: str) -> Markup:
    if not get:
        return Markup("")
    if get.startswith("http"):
        return Markup('<a class="get" href="{}">{}</a>').format(get, get)
    return Markup('<code class="get">{}</code>').format(get)


# ---- releases


def releases(picture: Picture, mlflow_url: str) -> Markup:
    if not picture.releases:
        if picture.releases_error:
            return Markup("")
        what = (
            "Set the alias `champion` on a version in MLflow: the release service checks it, compiles it and signs it."
        )
        return empty("Nothing has been released yet", what)
    columns = ("When (UTC)", "Channel", "Version", "Status", "Gates", "Engines", "Reason")
    return table(columns, (_release(one, picture.robots, mlflow_url) for one in picture.releases), "releases")


def _release(one: Release, robots_: Sequence[Row], mlflow_url: str) -> tuple[Any, ...]:
    version = Markup("<b>v{}</b>").format(one.version)
    if mlflow_url.startswith("http"):
        href = f"{mlflow_url.rstrip('/')}/#/models/{MODEL_NAME}/versions/{quote(one.version)}"
        version = Markup('<a href="{}">{}</a>').format(href, version)
    ring = [row for row in robots_ if row["ring"] == one.channel]
    running = sum(row["release"] == one.release_id for row in ring)
    where = f"current, on {running} of {len(ring)} robots" if one.current else ""
    engines = (
        Markup('<div><span class="mono" title="{}">{}</span> {}</div>').format(
            passport.engine.sha256, passport.engine.sha256[:8], note(target)
        )
        for target, passport in one.passports.items()
    )
    return (
        one.issued_at[:19].replace("T", " "),
        Markup("{} {}").format(one.channel, note(f"#{one.sequence}" if one.sequence is not None else "")),
        version,
        Markup("{} {}").format(chip(one.status), note(where)),
        join(map(_gate, one.gates())) or _DASH,
        join(engines) or _DASH,
        one.reason or _DASH,
    )


def _gate(gate: GateResult) -> Markup:
    value = "" if gate.value is None else f" {gate.value:.4g}"
    limit = "" if gate.limit is None else f" (limit {gate.limit:.4g})"
    form = '<div class="gate {}" title="{}">{}{}{}</div>'
    return Markup(form).format("good" if gate.passed else "bad", gate.detail, gate.name, value, note(limit))


# ---- times


def ago(now: datetime.datetime, then: datetime.datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    if seconds < 2:
        return "now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _exact(moment: datetime.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC" if moment else "–"
