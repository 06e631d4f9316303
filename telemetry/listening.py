"""Whether a port is free, said in one line before a server says it in many."""

import socket

from serving.errors import OperatorError


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound, not yet listening socket, for a server to take over.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is in TIME_WAIT is no obstacle
        made.bind(address)
        return made
    except OSError as problem:
        if made is not None:
            made.close()
        raise OperatorError(
            f"cannot listen on {host}:{port} ({problem.strerror}); stop what uses it or choose another with --port"
        ) from None


def refuse_taken_port(host: str, port: int) -> None:
    """For servers that bind by themselves.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    listening_socket(host, port).close()
