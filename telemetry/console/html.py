"""The small parts that every page is made of. Pure: data in, markup out; every value is escaped by markupsafe."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

Row = Mapping[str, Any]  # of the store

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
    "motors.guard-restarted": "warn",
    "slots.damaged": "warn",
    "stopped": "warn",
    "collision": "bad",
    "engine.failed": "bad",
    "model.refused": "bad",
    "refused": "bad",
}
DASH = Markup('<span class="none">–</span>')


def join(parts: Iterable[Any]) -> Markup:
    return Markup("").join(parts)


def chip(text: str, tone: str = "") -> Markup:
    return Markup('<span class="chip {}">{}</span>').format(tone or _TONE.get(text, ""), text)


def note(text: Any) -> Markup:
    return Markup('<span class="note">{}</span>').format(text) if text else Markup("")


def mono(text: Any, title: str = "") -> Markup:
    return Markup('<span class="mono" title="{}">{}</span>').format(title, text)


def link(href: str, text: Any, css: str = "") -> Markup:
    return Markup('<a class="{}" href="{}">{}</a>').format(css, href, text)


def empty(title: str, what_to_do: str, command: str = "") -> Markup:
    """What stands where there is nothing yet: why, and what makes it come."""
    shown = Markup("<pre>{}</pre>").format(command) if command else ""
    return Markup('<div class="empty"><b>{}</b><p>{}</p>{}</div>').format(title, what_to_do, shown)


def problem(text: str) -> Markup:
    return Markup('<div class="problem" role="alert">{}</div>').format(text) if text else Markup("")


def figures(values: Iterable[tuple[str, str, str]]) -> Markup:
    """A line of figures: (value, what it is, tone)."""
    form = Markup('<div class="figure {}"><b>{}</b><span>{}</span></div>')
    cells = join(form.format(tone, value, name) for value, name, tone in values)
    return Markup('<div class="figures">{}</div>').format(cells)


def cells(columns: Sequence[str], row: Sequence[Any]) -> Markup:
    """What stands in one `tr`. A column whose name ends in `>` is aligned right; on a phone each cell has its name."""
    form = Markup('<td class="{}" data-label="{}"><div>{}</div></td>')
    return join(
        form.format("number" if column.endswith(">") else "", column.rstrip(">"), cell)
        for column, cell in zip(columns, row, strict=True)
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> Markup:
    """A table that becomes a list of cards on a phone."""
    head = join(
        Markup('<th class="{}">{}</th>').format("number" if column.endswith(">") else "", column.rstrip(">"))
        for column in columns
    )
    body = join(Markup("<tr>{}</tr>").format(cells(columns, row)) for row in rows)
    form = '<div class="sheet"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(form).format(kind, head, body)


def facts(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """A list of names and values."""
    return Markup("<dl>{}</dl>").format(join(Markup("<dt>{}</dt><dd>{}</dd>").format(*pair) for pair in pairs))


def select(name: str, label: str, values: Iterable[tuple[str, str]], chosen: str) -> Markup:
    """A choice in a form: (value, text)."""
    options = join(
        Markup('<option value="{}"{}>{}</option>').format(value, " selected" if value == chosen else "", text)
        for value, text in values
    )
    return Markup('<select name="{}" aria-label="{}">{}</select>').format(name, label, options)


# ---- values


def number(value: Any, form: str) -> Markup | str:
    return form.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else DASH


def brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_one_line(data: Mapping[str, Any]) -> str:
    """An event's data; what it has no value for is left out."""
    return ", ".join(f"{name} {brief(value)}" for name, value in data.items() if value not in (None, ""))


def details(data: Mapping[str, Any]) -> Markup:
    text = in_one_line(data)
    return Markup('<span class="details">{}</span>').format(text[:300]) if text else DASH


# ---- times


def exact(moment: datetime.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC" if moment else "–"


def ago(moment: datetime.datetime | None) -> Markup:
    """How long ago; the browser keeps it current, so that a table is not sent again because time has passed."""
    if moment is None:
        return DASH
    form = '<time class="ago" datetime="{}" title="{}">{}</time>'
    return Markup(form).format(f"{moment:%Y-%m-%dT%H:%M:%SZ}", exact(moment), f"{moment:%H:%M:%S}")


def clock(moment: datetime.datetime, *, day: bool = False) -> Markup:
    text = f"{moment:%Y-%m-%d %H:%M:%S}" if day else f"{moment:%H:%M:%S.%f}"[:-3]
    return Markup('<time class="mono" title="{}">{}</time>').format(exact(moment), text)
