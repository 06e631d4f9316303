"""A proxy before a real S3 that now and then answers 503: before it passed the request on, or after."""

import http.client
import random
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "expect"}


class UnsteadyS3:
    """Use as a context manager.

    Attributes:
        endpoint: of the proxy.
        refused: requests that never reached the server.
        unanswered: requests that the server did, of which the client was not told.
    """

    def __init__(self, endpoint: str, share: float, seed: int = 7) -> None:
        target = urllib.parse.urlsplit(endpoint)
        chance = random.Random(seed)
        self.refused = self.unanswered = 0
        unsteady = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                luck = chance.random()
                if luck < share / 2:
                    unsteady.refused += 1
                    return self._answer(503, _SLOW_DOWN, {"Content-Type": "application/xml"})
                server = http.client.HTTPConnection(str(target.hostname), target.port, timeout=20)
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION
                }
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
                server.close()
                if luck < share:
                    unsteady.unanswered += 1
                    return self._answer(503, _SLOW_DOWN, {"Content-Type": "application/xml"})
                return self._answer(answer.status, content, dict(answer.getheaders()))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

            def _answer(self, status: int, content: bytes, headers: "dict[str, str]") -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in _OF_THE_CONNECTION | {"content-length"}:
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "UnsteadyS3":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
