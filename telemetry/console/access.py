"""Who asks, and whether they may: an ASGI layer around the whole console, its websocket included.

Three ways to be known, chosen once on the command line: nobody asks on this machine alone; a file of users with
passwords; a proxy in front that has asked. Every answer leaves with the security headers. The page to sign in is
login.py.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import OperatorError
from telemetry.console.html import problem
from telemetry.users import Role, Users

COOKIE = "jetloop-console"
SESSION_S = 12 * 3600.0  # a shift
MAX_SESSIONS = 10_000
WHO = "jetloop.who"  # key of the ASGI scope
_OPEN = ("/healthz", "/login")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    # NiceGUI compiles its templates in the browser and writes scripts and styles into the page: hence both `unsafe`.
    # Nothing may be loaded from, or sent to, any other address, and no page may frame this one.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Who:
    """Who asks."""

    name: str
    role: Role
    token: str  # what a form must carry: no other site knows it
    can_leave: bool = False  # signed in here, and so may sign out here

    @property
    def operates(self) -> bool:
        return self.role == "operator"


@dataclass(frozen=True)
class Access:
    """How people are known.

    Attributes:
        users: who has which role, and with a password signs in here; None: no file.
        header: in which the proxy names the user; empty: no proxy.
        proxies: who is believed so.
        local: listens on this machine's own address alone.
    """

    users: Users | None = None
    header: str = ""
    proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()
    local: bool = True
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        if bool(self.header) != bool(self.proxies):
            raise OperatorError(
                "--trust-header and --trusted-proxy belong together: the header is believed from those addresses alone"
            )
        if not self.local and self.users is None and not self.header:
            raise OperatorError(
                "--host is reached by others, and nobody would be asked who they are: add --users FILE (`jetloop "
                "console user add`), or --trust-header with --trusted-proxy, or stay on 127.0.0.1"
            )

    def token(self, key: str) -> str:
        return hmac.new(self.secret, key.encode(), hashlib.sha256).hexdigest()

    def believed(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        return any(address in network for network in self.proxies)


class Limiter:
    """Counts what went wrong per key within a window; the oldest keys are forgotten first."""

    def __init__(self, limit: int, window_s: float, keys: int = 10_000) -> None:
        self._limit, self._window_s, self._keys = limit, window_s, keys
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """How long this key has to wait; 0: it may."""
        times = self._times.get(key, deque())
        while times and times[0] < time.monotonic() - self._window_s:
            times.popleft()
        return times[0] + self._window_s - time.monotonic() if len(times) >= self._limit else 0.0

    def count(self, key: str) -> None:
        self._times.setdefault(key, deque(maxlen=self._limit)).append(time.monotonic())
        self._times.move_to_end(key)
        while len(self._times) > self._keys:
            self._times.popitem(last=False)


class Sessions:
    """Who is signed in. In memory, under the hash of the cookie: a restart signs everybody out."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()  # hash -> name, until when

    def begin(self, name: str) -> str:
        """Signs a user in; returns the cookie."""
        cookie = secrets.token_urlsafe(32)
        self._sessions[_hash(cookie)] = (name, time.monotonic() + SESSION_S)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return cookie

    def name(self, cookie: str) -> str | None:
        name, until = self._sessions.get(_hash(cookie), (None, 0.0))
        return name if time.monotonic() < until else None

    def end(self, cookie: str) -> None:
        self._sessions.pop(_hash(cookie), None)


class Gate:
    """The layer itself: finds out who asks, turns away who may not, and adds the headers."""

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions) -> None:
        self._app, self._access, self._sessions = app, access, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal: ASGIApp | None = None
        if not self._same_origin(scope, headers):
            refusal = PlainTextResponse("this request comes from another site", 403)
        else:
            try:
                scope[WHO] = self._who(scope, headers)
            except OperatorError as cause:
                refusal = HTMLResponse(str(problem(str(cause))), 503)
            if refusal is None and scope[WHO] is None and scope["path"] not in _OPEN:
                refusal = self._turn_away(scope)
        if refusal is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _who(self, scope: Scope, headers: Headers) -> Who | None:
        access = self._access
        if access.header:
            return self._of_proxy(scope, headers)
        if access.users is None:
            return Who("local", "operator", access.token("local"))
        cookie = cookie_of(headers)
        name = self._sessions.name(cookie) if cookie else None
        user = access.users.get(name) if name else None
        return Who(user.name, user.role, access.token(_hash(cookie)), can_leave=True) if user else None

    def _of_proxy(self, scope: Scope, headers: Headers) -> Who | None:
        client = scope["client"][0] if scope.get("client") else ""
        names = headers.getlist(self._access.header)
        if not self._access.believed(client) or len(names) != 1 or not names[0].strip():
            return None
        name = names[0].strip()[:100]
        user = self._access.users.get(name) if self._access.users else None
        return Who(name, user.role if user else "viewer", self._access.token(f"proxy/{name}"))

    def _same_origin(self, scope: Scope, headers: Headers) -> bool:
        """No other site's page may write here or listen in; and none may call this machine by a name of its own."""
        hosts = {headers.get("host", "")}
        if scope.get("client") and self._access.believed(scope["client"][0]):
            hosts.add(headers.get("x-forwarded-host", ""))
        elif self._access.local and urlsplit(f"//{headers.get('host', '')}").hostname not in _LOCAL_NAMES:
            return False
        writes = scope["type"] == "websocket" or scope.get("method") not in ("GET", "HEAD", "OPTIONS")
        origin = headers.get("origin")
        return not writes or origin is None or urlsplit(origin).netloc in hosts

    def _turn_away(self, scope: Scope) -> ASGIApp:
        if self._access.header:
            return PlainTextResponse("sign in through the proxy in front of this console", 401)
        if scope["type"] == "http" and scope.get("method") == "GET" and not scope["path"].startswith("/_nicegui"):
            query = scope["query_string"].decode("latin-1")
            back = quote(scope["path"] + (f"?{query}" if query else ""), safe="")
            return RedirectResponse(f"/login?back={back}", 303)
        return PlainTextResponse("sign in first", 401)


def cookie_of(headers: Mapping[str, str]) -> str:
    """The session's cookie; empty when there is none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def who(scope: Mapping[str, Any]) -> Who:
    """Who asks, of a request that passed the gate."""
    found = scope[WHO]
    assert isinstance(found, Who)
    return found


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if headers.get("content-type", "").startswith("text/html"):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending
