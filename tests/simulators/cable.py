"""A cable to a server that a test can cut, or make slow or deaf: a TCP relay on loopback, in threads of its own."""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import List, Optional, Type, Union
from urllib.parse import urlsplit


class Cable:
    """Relays what comes to `uri` to the server, until it is cut; `mend` makes it whole, at the same address.

    Args:
        server: its URI, or its port on loopback.

    Attributes:
        deaf: what comes from the server is lost, until `mend`.
        delay_s: of every packet from the server.
    """

    def __init__(self, server: Union[str, int]) -> None:
        parts = urlsplit(f"tcp://127.0.0.1:{server}" if isinstance(server, int) else server)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._open: List[socket.socket] = []
        self._listener: Optional[socket.socket] = None
        self.deaf, self.delay_s = False, 0.0
        self.port = 0
        self.mend()
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Cable":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], problem: object, trace: Optional[TracebackType]) -> None:
        self.cut()

    def mend(self) -> None:
        self.deaf = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Ends every connection, and refuses new ones."""
        if self._listener is not None:
            _close(self._listener)
            self._listener = None
        while self._open:
            _close(self._open.pop())

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the cut
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(self._server, timeout=2)
                    server.settimeout(None)
                except OSError:  # it is not there: whoever called finds out
                    _close(client)
                    continue
                self._open += [client, server]
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what comes in parts goes on at once
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passes(data, to_server)
                if self.delay_s and not to_server:
                    time.sleep(self.delay_s)  # a slow line, not a wait for something
                if to_server or not self.deaf:
                    target.sendall(data)
        _close(source)
        _close(target)

    def passes(self, data: bytes, to_server: bool) -> None:
        """Called with all that comes by, in any thread; for who wants to look at it."""


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept or recv
    one.close()
