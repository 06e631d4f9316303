"""The releases: how far each has come in its ring, how its robots fare against the release before, and all decisions.
Pure: data in, markup out.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from serving.contracts.releases import MODEL_NAME, GateResult
from telemetry.console import html
from telemetry.console.feed import HEALTH_H, Picture
from telemetry.console.html import DASH, Row
from telemetry.console.reads import Health
from telemetry.releases import Release

_WORSE = 1.25  # times as much as the release before: worth a look


def page(picture: Picture, mlflow_url: str) -> Markup:
    if not picture.releases:
        if picture.releases_error:
            return Markup("")
        what = (
            "Set the alias `champion` on a version in MLflow: the release service checks it, compiles it and signs it."
        )
        return html.empty("Nothing has been released yet", what)
    columns = ("When (UTC)", "Channel", "Version", "Status", "Gates", "Engines", "Reason")
    decisions = html.table(columns, (_release(one, picture.robots, mlflow_url) for one in picture.releases), "releases")
    return html.join([*_rings(picture), Markup("<h2>All decisions</h2>"), decisions])


def _rings(picture: Picture) -> Sequence[Markup]:
    """One card a ring: what it is to run, how many do, and the figures of this release and the one before."""
    return [_ring(picture, one) for one in picture.releases if one.current]


def _ring(picture: Picture, current: Release) -> Markup:
    robots = [row for row in picture.robots if row["ring"] == current.channel]
    running = sum(row["release"] == current.release_id for row in robots)
    share = running / len(robots) if robots else 0.0
    bar = Markup(
        '<div class="bar" role="progressbar" aria-valuenow="{0}" aria-valuemin="0" aria-valuemax="100" '
        'aria-label="rollout"><i style="width:{0}%"></i></div>'
    ).format(round(100 * share))
    before = previous(picture.releases, current)
    title = Markup('<h2>{} {} {}</h2><p class="note">{} of {} robots run it</p>{}').format(
        current.channel,
        Markup("<b>v{}</b>").format(current.version),
        html.chip(current.status),
        running,
        len(robots),
        bar,
    )
    return Markup('<section class="card ring">{}{}</section>').format(title, _health(picture, current, before))


def previous(releases: Sequence[Release], current: Release) -> Release | None:
    """What the channel ran before: its newest decision below with another release. `releases` are newest first."""
    older = [
        one
        for one in releases[list(releases).index(current) + 1 :]
        if one.channel == current.channel and one.release_id and one.release_id != current.release_id
    ]
    return next((one for one in older if one.status != "refused"), None)


def _health(picture: Picture, current: Release, before: Release | None) -> Markup:
    now = picture.health.get(current.release_id)
    was = picture.health.get(before.release_id) if before else None
    if now is None:
        return Markup('<p class="note">No robot has told anything of it in the last {:.0f} h.</p>').format(HEALTH_H)
    columns = ["Last 24 h", f"v{current.version}>", f"v{before.version}>" if before else "before>"]
    rows = [
        ("robots", f"{now.robots}", f"{was.robots}" if was else DASH),
        _compared("decisions", now, was, lambda one: one.decisions, "{:,}", judged=False),
        _compared("collisions in 10,000 decisions", now, was, lambda one: one.per_decisions(one.collisions), "{:.2f}"),
        _compared("interventions in 10,000", now, was, lambda one: one.per_decisions(one.interventions), "{:.2f}"),
        _compared("went back by themselves", now, was, lambda one: one.went_back, "{:,}"),
        _compared("latency p99", now, was, lambda one: one.latency_p99_ms, "{:.1f} ms"),
        _compared("blocked", now, was, lambda one: one.blocked_rate, "{:.1%}", judged=False),
    ]
    return html.table(columns, rows, "health")


def _compared(
    name: str, now: Health, was: Health | None, of: Any, form: str, *, judged: bool = True
) -> tuple[Any, ...]:
    """A line of two figures, where more is worse; much more is marked."""
    value, before = of(now), of(was) if was else None
    shown = html.number(value, form)
    worse = judged and value is not None and before is not None and value > max(before * _WORSE, 1e-6)
    return name, html.chip(str(shown), "warn") if worse else shown, html.number(before, form)


def _release(one: Release, robots_: Sequence[Row], mlflow_url: str) -> tuple[Any, ...]:
    version = Markup("<b>v{}</b>").format(one.version)
    if mlflow_url.startswith("http"):
        href = f"{mlflow_url.rstrip('/')}/#/models/{MODEL_NAME}/versions/{quote(one.version)}"
        version = html.link(href, version)
    ring = [row for row in robots_ if row["ring"] == one.channel]
    running = sum(row["release"] == one.release_id for row in ring)
    where = f"current, on {running} of {len(ring)} robots" if one.current else ""
    engines = (
        Markup("<div>{} {}</div>").format(
            html.mono(passport.engine.sha256[:8], passport.engine.sha256), html.note(target)
        )
        for target, passport in one.passports.items()
    )
    return (
        one.issued_at[:19].replace("T", " "),
        Markup("{} {}").format(one.channel, html.note(f"#{one.sequence}" if one.sequence is not None else "")),
        version,
        Markup("{} {}").format(html.chip(one.status), html.note(where)),
        html.join(map(_gate, one.gates())) or DASH,
        html.join(engines) or DASH,
        one.reason or DASH,
    )


def _gate(gate: GateResult) -> Markup:
    value = "" if gate.value is None else f" {gate.value:.4g}"
    limit = "" if gate.limit is None else f" (limit {gate.limit:.4g})"
    form = '<div class="gate {}" title="{}">{}{}{}</div>'
    return Markup(form).format("good" if gate.passed else "bad", gate.detail, gate.name, value, html.note(limit))
