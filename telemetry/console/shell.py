"""What is around every page: header, links, who is signed in; and how a page is kept current.

A page is made of parts, each a function of the picture. Every part and every table row is an element of its own, and
NiceGUI sends the browser only elements whose content has changed.
"""

import time
from collections.abc import Callable, Sequence

from markupsafe import Markup
from nicegui import ui

from telemetry.console import html
from telemetry.console.access import Who
from telemetry.console.feed import Feed, Picture
from telemetry.console.login import hidden
from telemetry.console.reads import Key
from telemetry.console.script import TOGGLE_DARK, script
from telemetry.console.style import STYLE

_PAGES = (("Robots", "/"), ("Events", "/events"), ("Releases", "/releases"), ("Data", "/data"))

TICK_S = 0.2  # between two looks whether there is a new picture

Part = Callable[[Picture], Markup]


def raw(content: Markup, tag: str = "div") -> ui.html:
    """Markup as an element; it was escaped when it was made."""
    return ui.html(content, sanitize=False, tag=tag)


class Rows:
    """The rows of a table's body, as elements."""

    def __init__(self) -> None:
        self._body = ui.element("tbody")
        self._rows: list[ui.html] = []

    def show(self, rows: Sequence[Markup]) -> None:
        for element, content in zip(self._rows, rows, strict=False):
            element.set_content(content)
        for element in self._rows[len(rows) :]:
            element.delete()
        del self._rows[len(rows) :]
        with self._body:
            self._rows += [raw(content, "tr") for content in rows[len(self._rows) :]]


class Page:
    """One open page: its parts, and the timer that brings them up to date.

    Args:
        here: which link of the header is lit.
        who: who looks.
    """

    def __init__(self, feed: Feed, here: str, who: Who) -> None:
        self._feed = feed
        self._refreshing: list[Callable[[Picture], None]] = []
        self._shown: Picture | None = None
        self.who = who
        self.trends_of: Sequence[Key] = ()  # robots whose trends this page shows
        ui.add_head_html(STYLE + script(time.time_ns() // 1_000_000))
        with ui.element("header").classes("top"):
            raw(_navigation(here)).style("display:contents")
            self.part(_live, "span")
            raw(_leave(who)).classes("who")
            ui.element("button").classes("dark-toggle").props('title="Light or dark" aria-label="Light or dark"').on(
                "click", js_handler=TOGGLE_DARK
            ).add_slot("default", "◐")
        self.content = ui.element("main").classes("main").props("id=content")

    async def begin(self) -> Picture:
        """The first picture; from now on the page is kept current."""
        picture = await self._feed.picture()
        self.refresh(picture)
        ui.timer(TICK_S, self._tick)
        return picture

    def part(self, part: Part, tag: str = "div") -> ui.html:
        """Adds a part that is drawn again for every picture, and sent where it has changed."""
        element = raw(Markup(""), tag)

        def draw(picture: Picture) -> None:
            element.set_content(part(picture))

        self.on_picture(draw)
        return element

    def on_picture(self, draw: Callable[[Picture], None]) -> None:
        self._refreshing.append(draw)

    def refresh(self, picture: Picture) -> None:
        for draw in self._refreshing:
            draw(picture)

    async def _tick(self) -> None:
        await self._feed.show_trends(self.trends_of)
        picture = await self._feed.picture()
        if picture is not self._shown:
            self._shown = picture
            self.refresh(picture)


def errors(picture: Picture) -> Markup:
    return html.problem(picture.store_error) + html.problem(picture.releases_error)


def _navigation(here: str) -> Markup:
    links = (html.link(path, name, "here" if path == here else "") for name, path in _PAGES)
    skip = Markup('<a class="skip" href="#content">To the content</a>')
    return skip + Markup('<a class="name" href="/">jetloop</a><nav>{}</nav>').format(html.join(links))


def _leave(who: Who) -> Markup:
    if not who.can_leave:
        return Markup("<span>{}</span>").format(who.name if who.name != "local" else "")
    form = '<span>{} ({})</span><form method="post" action="/logout">{}<button>Sign out</button></form>'
    return Markup(form).format(who.name, who.role, hidden(who.token))


def _live(picture: Picture) -> Markup:
    down = picture.store_error or picture.releases_error
    return Markup('<span class="live {}">{}</span>').format("down" if down else "", "trouble" if down else "live")
