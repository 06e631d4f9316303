"""The console's pages. Each shows the feed's picture, and sends the browser what changed twice a second."""

import asyncio
from collections.abc import Callable

from fastapi import FastAPI
from markupsafe import Markup
from nicegui import app as nicegui_app
from nicegui import ui

from serving.errors import JetloopError
from telemetry import origin
from telemetry.console import markup
from telemetry.console.feed import STORE_S, Feed, Picture
from telemetry.console.style import FAVICON, HEAD, TOGGLE_DARK

TITLE = "jetloop"
_PAGES = (("Robots", "/"), ("Events", "/events"), ("Releases", "/releases"))
_LATEST = 12  # events below the robots

Part = Callable[[Picture], Markup]


def make_app(feed: Feed) -> FastAPI:
    """The console as an ASGI application; it starts and ends the feed with itself."""
    app = FastAPI(openapi_url=None)
    tasks: list[asyncio.Task[None]] = []

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    nicegui_app.on_startup(lambda: tasks.append(asyncio.create_task(feed.run())))
    nicegui_app.on_shutdown(lambda: [task.cancel() for task in tasks])
    _add_pages(feed)
    ui.run_with(app, title=TITLE, dark=None, favicon=FAVICON, tailwind=False, show_welcome_message=False)
    return app


def _add_pages(feed: Feed) -> None:
    @ui.page("/")
    async def robots() -> None:
        await _show(feed, "/", _robots)

    @ui.page("/events")
    async def events(robot: str = "", metrics: bool = False) -> None:
        await _show(feed, "/events", lambda picture: _events(picture, robot, metrics))

    @ui.page("/releases")
    async def releases() -> None:
        await _show(feed, "/releases", lambda picture: _releases(picture, feed.mlflow_url))

    @ui.page("/event/{event_id}")
    async def event(event_id: str) -> None:
        await _show(feed, "/events", None, await _event(feed, event_id))


def _robots(picture: Picture) -> Markup:
    errors = markup.problem(picture.store_error) + markup.problem(picture.releases_error)
    if picture.store_error and not picture.robots:  # zeros would pass for readings
        return errors + Markup("<h1>Robots</h1>")
    latest = markup.events(picture.events[:_LATEST], markup.no_events())
    more = Markup('<h2>Latest events <a class="note" href="/events">all</a></h2>')
    parts = (Markup("<h1>Robots</h1>"), markup.summary(picture), markup.robots(picture), more, latest)
    return errors + markup.join(parts)


def _events(picture: Picture, robot: str, metrics: bool) -> Markup:
    rows = [
        row
        for row in (picture.with_metrics if metrics else picture.events)
        if robot in ("", f"{row['site']}/{row['robot']}")
    ]
    switch = Markup('<a href="/events?robot={}&metrics={}">{} metrics</a>').format(
        robot, str(not metrics).lower(), "without" if metrics else "with"
    )
    every = Markup('<a href="/events?metrics={}">all robots</a>').format(str(metrics).lower()) if robot else ""
    title = Markup("<h1>Events {}</h1>").format(markup.note(robot and f"of {robot}"))
    page = markup.problem(picture.store_error) + Markup('<div class="tools">{}{}{}</div>').format(title, every, switch)
    page += markup.events(rows, Markup("") if picture.store_error else markup.no_events())
    if picture.rejected:
        page += Markup("<h2>Refused messages</h2>") + markup.rejected(picture.rejected)
    return page


def _releases(picture: Picture, mlflow_url: str) -> Markup:
    title = Markup("<h1>Releases</h1>")
    return markup.problem(picture.releases_error) + title + markup.releases(picture, mlflow_url)


async def _event(feed: Feed, event_id: str) -> Markup:
    """The page of one event, with where it comes from, or with why that is not known."""
    picture = await feed.picture()
    try:
        row = await feed.event(event_id)
    except JetloopError as problem:
        return Markup("<h1>Event</h1>") + markup.problem(str(problem))
    page = Markup('<div class="head"><h1 class="mono">{}</h1>{}</div>').format(row["id"], markup.chip(row["type"]))
    page += Markup('<div class="card">{}</div><h2>Where it comes from</h2>').format(markup.facts(row))
    try:
        found = origin.trace(row, picture.releases)
    except JetloopError as problem:
        return page + markup.problem(picture.releases_error or str(problem))
    steps = origin.steps(found, feed.releases_url, feed.mlflow_url)
    return page + Markup('<div class="card">{}</div>').format(markup.origin(steps))


async def _show(feed: Feed, here: str, part: Part | None, page: str = "") -> None:
    """Header and content; `part` is drawn again for every new picture, `page` stays as it is."""
    ui.add_head_html(HEAD)
    picture = await feed.picture()
    with ui.element("header").classes("top"):
        ui.html(_navigation(here), sanitize=False).style("display:contents")
        live = ui.html(_live(picture), sanitize=False)
        ui.element("button").classes("dark-toggle").props('title="Light or dark" aria-label="Light or dark"').on(
            "click", js_handler=TOGGLE_DARK
        ).add_slot("default", "◐")
    content = ui.html(part(picture) if part else page).classes("main")

    async def refresh() -> None:
        now = await feed.picture()
        live.set_content(_live(now))
        if part:
            content.set_content(part(now))

    ui.timer(STORE_S, refresh)


def _navigation(here: str) -> Markup:
    links = (
        Markup('<a href="{}" class="{}">{}</a>').format(path, "here" if path == here else "", name)
        for name, path in _PAGES
    )
    return Markup('<a class="name" href="/">jetloop</a><nav>{}</nav>').format(markup.join(links))


def _live(picture: Picture) -> Markup:
    down = picture.store_error or picture.releases_error
    return Markup('<span class="live {}">{}</span>').format("down" if down else "", "trouble" if down else "live")
