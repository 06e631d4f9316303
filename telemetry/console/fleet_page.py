"""The first page: the fleet, with its filters, its sorting and its pages; each person's view is their own."""

from urllib.parse import urlencode

from markupsafe import Markup
from nicegui import ui

from telemetry.console import events_page, fleet, html
from telemetry.console.access import Who
from telemetry.console.feed import Feed, Picture
from telemetry.console.fleet import View
from telemetry.console.shell import Page, Rows, errors, raw

_LATEST = 12  # events below the robots
_TYPED = "event => emit(event.target.value)"


class FleetPage:
    """Builds itself in the current client; `begin` makes it live."""

    def __init__(self, feed: Feed, who: Who, view: View) -> None:
        self._view = view
        self._picture = Picture()
        self._page = Page(feed, "/", who)
        with self._page.content:
            self._page.part(errors)
            raw(Markup("<h1>Robots</h1>"))
            self._page.part(_summary)
            self._ring = self._filters()
            self._empty = raw(Markup(""))
            self._table = ui.element("div").classes("sheet")
            with self._table, ui.element("table").classes("robots"):
                self._head = raw(Markup(""), "thead").on("click", self._sort, js_handler=_SORTED)
                self._rows = Rows()
            self._pager = raw(Markup("")).classes("pager").on("click", self._turn, js_handler=_TURNED)
            raw(Markup('<h2>Latest events <a class="note" href="/events">all</a></h2>'))
            self._page.part(_latest)
        self._page.on_picture(self._draw)

    async def begin(self) -> None:
        await self._page.begin()

    def _filters(self) -> ui.html:
        with ui.element("div").classes("search").props("role=search"):
            search = ui.element("input").props('type=search id=search placeholder="Name, site, model, state    ( / )"')
            search.props('aria-label="Filter the robots"').props["value"] = self._view.text
            search.on("input", lambda e: self._change(text=str(e.args)[:100], page=0), js_handler=_TYPED, throttle=0.1)
            states = raw(html.select("state", "State", [(one, one) for one in fleet.STATES], self._view.state))
            states.on("change", lambda e: self._change(state=str(e.args), page=0), js_handler=_TYPED)
            rings = raw(Markup(""))
            rings.on("change", lambda e: self._change(ring=str(e.args), page=0), js_handler=_TYPED)
        return rings

    def _change(self, **changes: object) -> None:
        self._view = self._view._replace(**changes)  # type: ignore[arg-type]
        self._draw(self._picture)
        defaults = View()._asdict()
        query = urlencode({name: value for name, value in self._view._asdict().items() if value != defaults[name]})
        ui.run_javascript(f"history.replaceState(null, '', {('/?' + query if query else '/')!r})")

    def _sort(self, event: object) -> None:
        column = str(getattr(event, "args", ""))
        if column in fleet.SORTS:
            self._change(sort=column, down=column == self._view.sort and not self._view.down, page=0)

    def _turn(self, event: object) -> None:
        step = {"next": 1, "previous": -1}.get(str(getattr(event, "args", "")), 0)
        self._change(page=max(0, self._view.page + step))

    def _draw(self, picture: Picture) -> None:
        self._picture = picture
        known = bool(picture.robots) or not picture.store_error  # zeros would pass for readings
        rows = fleet.chosen(picture.robots, self._view, picture.at)
        shown, page, pages = fleet.page_of(rows, self._view)
        self._view = self._view._replace(page=page)
        current = {one.channel: one for one in picture.releases if one.current}
        self._rows.show([fleet.line(row, picture, current) for row in shown])
        self._table.set_visibility(bool(shown))
        self._head.set_content(_head(self._view))
        self._pager.set_content(_pager(len(rows), page, pages) if picture.robots else Markup(""))
        self._empty.set_content(_nothing(picture) if known and not shown else Markup(""))
        rings = sorted({row["ring"] for row in picture.robots if row["ring"]})
        self._ring.set_content(
            html.select("ring", "Ring", [("", "all rings"), *((ring, ring) for ring in rings)], self._view.ring)
        )
        self._page.trends_of = [(row["site"], row["robot"]) for row in shown]


# The one button that was pressed, of those in a head or a pager.
_SORTED = "event => { const b = event.target.closest('button'); if (b) emit(b.dataset.column); }"
_TURNED = "event => { const b = event.target.closest('button'); if (b) emit(b.dataset.turn); }"


def _summary(picture: Picture) -> Markup:
    return fleet.summary(picture) if picture.robots or not picture.store_error else Markup("")


def _latest(picture: Picture) -> Markup:
    if picture.events:
        return events_page.events(picture.events[:_LATEST])
    return Markup("") if picture.store_error else events_page.no_events()


def _nothing(picture: Picture) -> Markup:
    if not picture.robots:
        return fleet.nobody()
    return html.empty("No robot is so", "Take a word out of the filter, or choose `all`.")


def _head(view: View) -> Markup:
    cells = []
    for column in fleet.COLUMNS:
        name, css = column.rstrip(">"), "number" if column.endswith(">") else ""
        if name not in fleet.SORTS:
            cells.append(Markup('<th class="{}">{}</th>').format(css, name))
            continue
        sort = f"{'descending' if view.down else 'ascending'}" if name == view.sort else ""
        order = Markup(' aria-sort="{}"').format(sort) if sort else Markup("")
        form = Markup('<th class="{}"{}><button data-column="{}">{}</button></th>')
        cells.append(form.format(css, order, name, name))
    return Markup("<tr>{}</tr>").format(html.join(cells))


def _pager(robots: int, page: int, pages: int) -> Markup:
    first = page * fleet.PAGE + 1 if robots else 0
    text = Markup("<span>{:,} to {:,} of {:,} robots</span>").format(
        first, min(robots, (page + 1) * fleet.PAGE), robots
    )
    if pages == 1:
        return text
    button = Markup('<button data-turn="{}"{}>{}</button>')
    back = button.format("previous", Markup(" disabled") if page == 0 else "", "Previous")
    return text + back + button.format("next", Markup(" disabled") if page == pages - 1 else "", "Next")
