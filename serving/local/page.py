"""The robot's own web page, and /metrics: threads of the standard library's server, a few at a time.

Who may: on loopback whoever is on this machine; elsewhere whoever knows `page.token`, sent as `Authorization: Bearer`.
A page of another site can do neither: it cannot read the token that orders need, and a name that leads here
(DNS rebinding) is refused by the Host header. The page itself holds nothing about the robot.
"""

import hmac
import http.server
import ipaddress
import logging
import secrets
import socket
import threading
from typing import Any, Callable, Optional, Tuple

import msgspec

from serving.config import PageSettings, is_loopback
from serving.errors import OperatorError, RejectedError
from serving.local.glimpse import Glimpse
from serving.local.metrics import CONTENT_TYPE, metrics
from serving.local.page_html import PAGE
from serving.local.requests import MAX_REQUEST_BYTES, Answer, Request, parse, to_plain
from serving.status import StatusFile
from serving.window import Totals

log = logging.getLogger("page")

_TIMEOUT_S = 5.0  # of each read and write of a connection
_FRAME_TIMEOUT_S = 1.0
_MAX_AT_ONCE = 12


class Page:
    """Serves until it is closed.

    Args:
        settings: the table `[page]` of robot.toml.
        do: answers a request; from any thread. Its second argument says who asks.
        status: what the robot does now.
        totals: since the start.
        glimpse: the newest frame.

    Raises:
        OperatorError: the address cannot be listened on.

    Attributes:
        port: that it listens on.
    """

    def __init__(
        self,
        settings: PageSettings,
        do: Callable[[Request, str], Answer],
        status: Callable[[], StatusFile],
        totals: Totals,
        glimpse: Glimpse,
    ) -> None:
        self.do, self.status, self.totals, self.glimpse = do, status, totals, glimpse
        # On loopback the page carries a token of its own, which only a page from here can read.
        self.shown_token = "" if settings.token else secrets.token_hex(16)
        self.token = settings.token or self.shown_token
        self.hosts = {"localhost", *(name.lower() for name in settings.hosts)}
        name = socket.gethostname().lower()
        self.hosts |= {name, f"{name}.local"}
        if not is_loopback(settings.bind) and not settings.token:
            raise OperatorError(f"page.bind is {settings.bind}, which others can reach: set page.token")
        try:
            self._server = _Server((settings.bind, settings.port), self)
        except (OSError, OverflowError) as problem:
            raise OperatorError(f"the page cannot listen on {settings.bind}:{settings.port}: {problem}") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="page", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: Tuple[str, int], page: Page) -> None:
        self.page = page
        self._free = threading.BoundedSemaphore(_MAX_AT_ONCE)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:  # without the base class's look-up of a name, which may take seconds
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "robot", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("%s: the connection ended", client_address, exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server_version, sys_version = "jetloop", ""
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Callable[[Page], None]) -> None:
        try:
            page = self.server.page
            if not _host_is_ours(self.headers.get("Host", ""), page.hosts):
                self._send(421, b"not a name of this robot; page.hosts in robot.toml allows more\n")
            else:
                act(page)
        except (ConnectionError, TimeoutError):  # whoever asked is gone
            self.close_connection = True

    def _get(self, page: Page) -> None:
        if self.path == "/":
            nonce = secrets.token_hex(16)
            html = PAGE.replace("NONCE", nonce).replace("SHOWN_TOKEN", page.shown_token)
            self._send(200, html.encode(), "text/html; charset=utf-8", nonce)
        elif not page.shown_token and not self._knows(page.token):
            self._send(401, b"page.token, as `Authorization: Bearer`\n")
        elif self.path == "/metrics":
            self._send(200, metrics(page.status(), page.totals).encode(), CONTENT_TYPE)
        elif self.path == "/status":
            self._send_json(200, to_plain(page.status()))
        elif self.path == "/frame.jpg":
            jpeg = page.glimpse.jpeg(_FRAME_TIMEOUT_S)
            self._send(503, b"no frame\n") if jpeg is None else self._send(200, jpeg, "image/jpeg")
        else:
            self._send(404, b"/, /status, /frame.jpg, /metrics\n")

    def _post(self, page: Page) -> None:
        if self.path != "/do":
            self._send(404, b"POST /do\n")
        elif not self._knows(page.token):
            self._send(401, b"page.token, as `Authorization: Bearer`\n")
        else:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or not length.isascii() or int(length) > MAX_REQUEST_BYTES:
                self._send(413, b"a request has a Content-Length of at most 4096 bytes\n")
                return
            try:
                answer = page.do(parse(self.rfile.read(int(length))), f"the page from {self.client_address[0]}")
                code = 200 if answer.ok else 409
            except RejectedError as problem:
                answer, code = Answer(ok=False, said=str(problem)), 400
            self._send_json(code, {"ok": answer.ok, "said": answer.said})

    def _knows(self, token: str) -> bool:
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode())

    def _send_json(self, code: int, content: Any) -> None:
        self._send(code, msgspec.json.encode(content), "application/json")

    def _send(self, code: int, body: bytes, content_type: str = "text/plain; charset=utf-8", nonce: str = "") -> None:
        self.send_response(code)
        own = f" script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}';" if nonce else ""
        policy = f"default-src 'none';{own} img-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: " + format, self.client_address[0], *args)


def _host_is_ours(host: str, names: "set[str]") -> bool:
    """An address cannot be rebound; a name must be one of ours."""
    name = _without_port(host.strip().lower())
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name in names


def _without_port(host: str) -> Optional[str]:
    """`name:80` -> name, `[::1]:80` -> ::1; None when it is neither."""
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        return address if bracket and (not port or _is_port(port)) else None
    name, colon, port = host.partition(":")
    return name if name and (not colon or _is_port(":" + port)) else None


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isdecimal()
