"""The page to sign in, and the way out. Plain HTML, a form, no script."""

import asyncio
import logging
import math

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from serving.errors import RejectedError
from telemetry.console import html
from telemetry.console.access import COOKIE, SESSION_S, Access, Limiter, Sessions, cookie_of, who
from telemetry.console.style import FAVICON_LINK, STYLE

log = logging.getLogger("jetloop.console")

FAILURES, WINDOW_S = 5, 300.0  # of one name from one address; an address has four times as many
MAX_FORM_BYTES = 16 * 1024
_KEY = "login"


def add_login(app: FastAPI, access: Access, sessions: Sessions) -> None:
    """Routes /login and /logout."""
    by_name, by_address = Limiter(FAILURES, WINDOW_S), Limiter(4 * FAILURES, WINDOW_S)

    @app.get("/login")
    async def ask(back: str = "/") -> Response:
        return _page(access, back) if access.users and not access.header else RedirectResponse("/", 303)

    @app.post("/login")
    async def sign_in(request: Request) -> Response:
        form = await form_of(request, access.token(_KEY))
        name, back = form.get("name", "")[:100], form.get("back", "/")
        address = request.client.host if request.client else "?"
        wait_s = max(by_name.wait_s(f"{address} {name}"), by_address.wait_s(address))
        if wait_s:
            message = f"Too many attempts; try again in {math.ceil(wait_s / 60)} min."
            return _page(access, back, name, message, 429)
        user = await asyncio.to_thread(access.users.check, name, form.get("password", "")) if access.users else None
        if user is None:
            by_name.count(f"{address} {name}")
            by_address.count(address)
            log.warning("%r did not sign in from %s: name or password wrong", name, address)
            return _page(access, back, name, "Name or password is wrong.", 401)
        log.info("%s signed in from %s", user.name, address)
        answer = RedirectResponse(_here(back), 303)
        answer.set_cookie(
            COOKIE,
            sessions.begin(user.name),
            max_age=int(SESSION_S),
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.post("/logout")
    async def sign_out(request: Request) -> Response:
        await form_of(request, who(request.scope).token)
        sessions.end(cookie_of(request.headers))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer


async def form_of(request: Request, token: str) -> dict[str, str]:
    """The fields of a form that was sent from a page of ours.

    Raises:
        RejectedError: it is too large, or has not the token: it was sent from elsewhere, or is older than the console.
    """
    import hmac

    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise RejectedError("this form is too large")
    from urllib.parse import parse_qsl

    try:
        form = dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise RejectedError("this is no form") from None
    if not hmac.compare_digest(form.get("token", "").encode(), token.encode()):
        raise RejectedError("this form is too old, or not of this console: go back, reload the page, send it again")
    return form


def hidden(token: str) -> Markup:
    return Markup('<input type="hidden" name="token" value="{}">').format(token)


def document(title: str, body: Markup, status: int = 200) -> HTMLResponse:
    """A page without NiceGUI."""
    head = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    form = '<!doctype html><html lang="en"><head>{}<title>{}</title>{}{}</head><body class="plain">{}</body></html>'
    return HTMLResponse(Markup(form).format(head, title, Markup(FAVICON_LINK), Markup(STYLE), body), status)


def _page(access: Access, back: str, name: str = "", message: str = "", status: int = 200) -> Response:
    form = Markup(
        '<main class="signin card"><h1>jetloop</h1>{}<form method="post" action="/login">{}'
        '<input type="hidden" name="back" value="{}">'
        '<label>Name<input name="name" autocomplete="username" required value="{}" autofocus></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
        "<button>Sign in</button></form></main>"
    )
    body = form.format(html.problem(message), hidden(access.token(_KEY)), _here(back), name)
    return document("jetloop", body, status)


def _here(back: str) -> str:
    """A path of this console; anything else leads to the first page."""
    good = back.startswith("/") and not back.startswith(("//", "/\\", "/login")) and back.isprintable()
    return back if good else "/"
