"""A page to watch a network drive: through the camera, with what the network makes of it, and from above.

A loopback web server of the standard library: one page, and one stream of JPEGs (multipart/x-mixed-replace) that every
browser shows. The drive goes on whether anybody watches or not, at the pace of the wall clock.
"""

import html
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from serving.errors import OperatorError
from simulator.arena import Arena
from simulator.drive import Network, drive
from simulator.settings import SuiteSettings
from simulator.suite_pictures import draw_path, side_by_side
from simulator.topview import plan

_SIDE = 448
_TRAIL = 600  # frames of the way that are shown
_BLUE = (20, 90, 200)
_BOUNDARY = "picture"
_PAGE = """<!doctype html><meta charset="utf-8"><title>jetloop: {title}</title>
<style>body {{ font: 16px system-ui, sans-serif; margin: 2em auto; max-width: 56em; text-align: center }}
img {{ width: 100%; border: 1px solid #ccc }} p {{ color: #555 }}</style>
<h1>{title}</h1><img src="/stream" alt="what the robot sees, and the room from above">
<p>Left: what the robot sees, and how sure the network is that its way is blocked. Right: the room from above, with
the way driven; the corridor ahead is red while the robot holds it for blocked.</p>
"""


class Screen:
    """The newest picture of a drive that goes on in a thread of its own, as JPEG.

    Args:
        arena: where the robot stands; the thread's own from now on.
        network: what drives it.
        settings: pace and safety distance.

    Attributes:
        failed: what ended the drive, if anything did.
    """

    def __init__(self, arena: Arena, network: Network, settings: SuiteSettings) -> None:
        self._arena, self._network, self._settings = arena, network, settings
        self._news = threading.Condition()
        self._picture = b""
        self._number = 0
        self._closing = threading.Event()
        self.failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="drive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the drive."""
        self._closing.set()
        self._thread.join(timeout=5.0)

    def wait(self) -> None:
        """Until the drive ends, by itself only with what made it fail.

        Raises:
            RejectedError: the network answers with what is no number.
        """
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)
        if self.failed is not None:
            raise self.failed

    def newer_than(self, number: int, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """Waits for a picture after the one of that number; the same again when none comes in time."""
        with self._news:
            self._news.wait_for(lambda: self._number > number, timeout_s)
            return self._number, self._picture

    def _run(self) -> None:
        try:
            for picture in self._pictures():
                with self._news:
                    self._picture, self._number = picture, self._number + 1
                    self._news.notify_all()
        except Exception as problem:  # `wait` tells it
            self.failed = problem

    def _pictures(self) -> Iterator[bytes]:
        empty, at = plan(self._arena.room, _SIDE)
        path: list[tuple[float, float]] = []
        begun_s = time.monotonic()
        for moment in drive(self._arena, self._network, self._settings):
            path = [*path[-_TRAIL:], moment.pose[:2]]
            picture = empty.copy()
            draw_path(picture, at, path, _BLUE)
            both = side_by_side(picture, at, moment, self._settings.safety_distance_m, _SIDE)
            jpeg = io.BytesIO()
            both.save(jpeg, "JPEG", quality=85)
            if self._closing.wait(max(0.0, begun_s + moment.time_s - time.monotonic())):
                return
            yield jpeg.getvalue()


class _Handler(BaseHTTPRequestHandler):
    screen: Screen
    title: str

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer("text/html; charset=utf-8", _PAGE.format(title=html.escape(self.title)).encode())
        elif self.path == "/picture.jpg":
            self._answer("image/jpeg", self.screen.newer_than(0)[1])
        elif self.path == "/stream":
            self._stream()
        else:
            self.send_error(404)

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.end_headers()
        number = 0
        try:
            while self.screen.failed is None:
                number, picture = self.screen.newer_than(number)
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
        except OSError:
            return  # the page was closed

    def log_message(self, format: str, *args: object) -> None:
        """One line a request would bury what matters."""


def serve(screen: Screen, title: str, port: int) -> ThreadingHTTPServer:
    """A server for the page, on loopback, not yet running; port 0 takes a free one.

    Raises:
        OperatorError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"screen": screen, "title": title})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as problem:
        raise OperatorError(f"port {port} cannot be used ({problem.strerror}); give another with --port") from None
    server.daemon_threads = True
    return server
