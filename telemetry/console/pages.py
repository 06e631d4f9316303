"""The console's pages, put together: which address shows what. How a page stays current is in shell.py."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from markupsafe import Markup
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from serving.errors import JetloopError
from telemetry.console import event_page, events_page, html, releases_page, robot_page
from telemetry.console.access import Access, Gate, Sessions, who
from telemetry.console.actions import add_actions
from telemetry.console.feed import Feed, Picture
from telemetry.console.fleet import STATES, View
from telemetry.console.fleet_page import FleetPage
from telemetry.console.login import add_login, document
from telemetry.console.reads import ConsoleStore
from telemetry.console.robot_page import Course
from telemetry.console.shell import Page, errors, raw
from telemetry.console.style import FAVICON
from telemetry.notes import Notes, subject_of_robot

TITLE = "jetloop"
COURSE_S = 5.0  # between two looks at the course of the robot that a page shows


@dataclass(frozen=True)
class Console:
    """What the pages are made of."""

    feed: Feed
    access: Access
    notes: Notes
    data_docs: Path  # of the stage validate


def make_app(console: Console) -> ASGIApp:
    """The console as an ASGI application; it starts and ends the feed with itself."""
    app = FastAPI(openapi_url=None)
    sessions = Sessions()
    tasks: list[asyncio.Task[None]] = []

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(JetloopError)
    async def failed(_: Request, problem: Exception) -> Response:
        body = Markup('<main class="main">{}<p><a href="/">To the robots</a></p></main>')
        return document(TITLE, body.format(html.problem(str(problem))), 400)

    add_login(app, console.access, sessions)
    add_actions(app, console.feed, console.notes)
    app.mount("/data/docs", StaticFiles(directory=console.data_docs, html=True, check_dir=False))
    nicegui_app.on_startup(lambda: tasks.append(asyncio.create_task(console.feed.run())))
    nicegui_app.on_shutdown(lambda: [task.cancel() for task in tasks])
    _add_pages(console)
    ui.run_with(app, title=TITLE, dark=None, favicon=FAVICON, tailwind=False, show_welcome_message=False)
    return Gate(app, console.access, sessions)


def _add_pages(console: Console) -> None:
    feed = console.feed

    @ui.page("/")
    async def robots(request: Request, text: str = "", state: str = "all", ring: str = "", sort: str = "Robot") -> None:
        down = request.query_params.get("down") == "True"
        view = View(text[:100], state if state in STATES else "all", ring, sort, down)
        await FleetPage(feed, who(request.scope), view).begin()

    @ui.page("/robot/{site}/{robot}")
    async def robot(request: Request, site: str, robot: str) -> None:
        await _robot(console, request, site, robot)

    @ui.page("/events")
    async def events(request: Request) -> None:
        await _events(feed, request)

    @ui.page("/releases")
    async def releases(request: Request) -> None:
        page = Page(feed, "/releases", who(request.scope))
        with page.content:
            page.part(errors)
            raw(Markup("<h1>Releases</h1>"))
            page.part(lambda picture: releases_page.page(picture, feed.mlflow_url))
        await page.begin()

    @ui.page("/event/{event_id}")
    async def event(request: Request, event_id: str) -> None:
        page = Page(feed, "/events", who(request.scope))
        await page.begin()
        with page.content:
            raw(await event_page.page(feed, console.notes, page.who, event_id))

    @ui.page("/data")
    async def data(request: Request) -> None:
        page = Page(feed, "/data", who(request.scope))
        await page.begin()
        with page.content:
            raw(Markup("<h1>Data</h1>"))
            raw(_data(console.data_docs))


async def _robot(console: Console, request: Request, site: str, robot: str) -> None:
    """The page of one robot: its state twice a second, its course every few seconds."""
    page = Page(console.feed, "/", who(request.scope))
    found: list[Course] = []

    async def look() -> None:
        try:
            rows = await console.feed.ask(lambda store: _course(store, console.notes, site, robot))
        except JetloopError:
            return  # the picture says what is wrong, and the page shows it
        found[:] = [rows]

    def of_course(part: Callable[[Course], Markup]) -> Callable[[Picture], Markup]:
        return lambda picture: part(found[0]) if found and found[0].robot else Markup("")

    def of_robot(part: Callable[[html.Row, Picture], Markup]) -> Callable[[Picture], Markup]:
        def draw(picture: Picture) -> Markup:
            rows = (row for row in picture.robots if (row["site"], row["robot"]) == (site, robot))
            row = next(rows, found[0].robot if found else None)
            return part(row, picture) if row else Markup("")

        return draw

    await look()
    with page.content:
        page.part(errors)
        if found and found[0].robot is None:
            raw(html.problem(f"no robot {site}/{robot} in the store; the list of robots shows those that are"))
        page.part(of_robot(robot_page.head))
        page.part(of_robot(robot_page.now))
        page.part(of_course(robot_page.course))
        page.part(of_course(lambda course: Markup("<h2>Notes</h2>")))
        subject, back = subject_of_robot(site, robot), request.url.path
        form = (subject, back, page.who.token)
        page.part(of_course(lambda course: robot_page.notes(course.notes, *form, operates=page.who.operates)))
        page.part(of_course(lambda course: Markup("<h2>Refused, or gone back</h2>") + robot_page.refusals(course)))
        page.part(of_course(lambda course: Markup("<h2>Timeline</h2>") + robot_page.timeline(course)))
    await page.begin()
    ui.timer(COURSE_S, look)


def _course(store: ConsoleStore, notes: Notes, site: str, robot: str) -> Course:
    return Course(
        robot=store.robot(site, robot),
        events=store.course(site, robot, robot_page.TIMELINE, metrics=False),
        metrics=store.course(site, robot, robot_page.CHART, metrics=True),
        notes=notes.of(subject_of_robot(site, robot)),
    )


async def _events(feed: Feed, request: Request) -> None:
    """The newest events, live; or what a search found, once."""
    query = dict(request.query_params)
    page = Page(feed, "/events", who(request.scope))
    with page.content:
        page.part(errors)
        raw(Markup("<h1>Events</h1>") + events_page.form(query))
        if not events_page.is_search(query):
            page.part(_newest)
            page.part(_refused)
        body = raw(Markup(""))
    picture = await page.begin()
    if events_page.is_search(query):
        try:
            rows = await feed.ask(lambda store: store.search(events_page.wanted(query, picture.at)))
            body.set_content(events_page.found(rows))
        except JetloopError as problem:
            body.set_content(html.problem(str(problem)) if not picture.store_error else Markup(""))


def _newest(picture: Picture) -> Markup:
    if picture.events:
        return events_page.events(picture.events)
    return Markup("") if picture.store_error else events_page.no_events()


def _refused(picture: Picture) -> Markup:
    if not picture.rejected:
        return Markup("")
    return Markup("<h2>Refused messages</h2>") + events_page.rejected(picture.rejected)


def _data(docs: Path) -> Markup:
    if not (docs / "index.html").is_file():
        what = f"{docs} has none. The stage validate writes it; --data-docs names the folder."
        return html.empty("No data-quality report yet", what, "dvc repro validate")
    text = "What every expectation found in the images that the models were trained on, by Great Expectations."
    link = html.link("/data/docs/index.html", "Open the data-quality report", "button")
    return Markup('<div class="card"><p>{}</p>{}</div>').format(text, link)
