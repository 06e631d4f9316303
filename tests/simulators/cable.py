"""A cable to a server that a test can cut: a TCP relay on loopback, in threads of its own."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import List, Optional, Type
from urllib.parse import urlsplit


class Cable:
    """Relays what comes to `uri` to the server, until it is cut; `mend` makes it whole, at the same address."""

    def __init__(self, server_uri: str) -> None:
        parts = urlsplit(server_uri)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._open: List[socket.socket] = []
        self._listener: Optional[socket.socket] = None
        self.port = 0
        self.mend()
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Cable":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], problem: object, trace: Optional[TracebackType]) -> None:
        self.cut()

    def mend(self) -> None:
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
                server = socket.create_connection(self._server)
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=_relay, args=ends, daemon=True).start()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _close(source)
    _close(target)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept or recv
    one.close()
